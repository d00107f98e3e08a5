/* How the ranks of one host meet, and sum their gradients, in memory that they share. shared.py calls it.

   This file is built if there is a C compiler. Otherwise shared.py does the same in Python. */

#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <sched.h>
#include <string.h>
#include <time.h>

enum { INTERFACE = 2 }; /* counts changes of the functions' arguments, as in shared.py */

enum {
    LINE = 8,             /* numbers between two flags or weights, so that each has its own cache line */
    SPINS = 4000,         /* about 20 to 50 microseconds: longer than most differences between ranks */
    SPINS_PER_YIELD = 200, /* so that ranks that share a core make way for each other */
    SLEEP = 50000,        /* nanoseconds */
    SLEEPS = 400,         /* then Python handles signals */
    BLOCK = 1024,         /* numbers that stay in the cache */
};

static int all_reached(const long long *flags, long ranks, long long count) {
    for (long r = 0; r < ranks; r++)
        if (__atomic_load_n(flags + r * LINE, __ATOMIC_ACQUIRE) < count) return 0;
    return 1;
}

static void pause_briefly(void) {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

/* The ranks of one host, as the first arguments of each function: address of their flags, this rank, number
   of ranks, and the count that the flags reach when all of them meet. */
#define TEAM_FORMAT "nllL"
#define TEAM(t) &(t).flags, &(t).rank, &(t).ranks, &(t).count

typedef struct {
    long long *flags;
    long rank, ranks;
    long long count;
} team;

/* Sets this rank's flag, and waits for the others. Returns 0, or -1 if a signal raised an exception. */
static int wait_for_all(team t) {
    __atomic_store_n(t.flags + t.rank * LINE, t.count, __ATOMIC_RELEASE);
    int met = all_reached(t.flags, t.ranks, t.count);
    while (!met) {
        Py_BEGIN_ALLOW_THREADS
        for (int i = 1; !met && i <= SPINS; i++) {
            if (i % SPINS_PER_YIELD)
                pause_briefly();
            else
                sched_yield();
            met = all_reached(t.flags, t.ranks, t.count);
        }
        for (int i = 0; !met && i < SLEEPS; i++) {
            nanosleep(&(struct timespec){.tv_nsec = SLEEP}, NULL);
            met = all_reached(t.flags, t.ranks, t.count);
        }
        Py_END_ALLOW_THREADS
        if (!met && PyErr_CheckSignals()) return -1;
    }
    return 0;
}

static PyObject *meet(PyObject *self, PyObject *args) {
    team t;
    if (!PyArg_ParseTuple(args, TEAM_FORMAT, TEAM(t)) || wait_for_all(t)) return NULL;
    Py_RETURN_NONE;
}

/* Returns 1 if all numbers are finite: only a finite number times zero is zero. */
static int all_finite(Py_ssize_t n, const float *x) {
    float probes[16] = {0}, probe = 0;
    Py_ssize_t i = 0;
    for (; i + 16 <= n; i += 16)
        for (int j = 0; j < 16; j++) probes[j] += 0 * x[i + j];
    for (; i < n; i++) probe += 0 * x[i];
    for (int j = 0; j < 16; j++) probe += probes[j];
    return probe == 0;
}

static PyObject *average(PyObject *self, PyObject *args) {
    team t;
    float sum[BLOCK], *matrix;
    Py_ssize_t row, size, start, stop;
    double *weights, weight;
    int everywhere, good = 1;
    if (!PyArg_ParseTuple(args, TEAM_FORMAT "nnnnnndp", TEAM(t), &matrix, &row, &size, &start, &stop,
                          &weights, &weight, &everywhere))
        return NULL;
    weights[t.rank * LINE] = weight;
    weights[t.rank * LINE + 1] = all_finite(size, matrix + t.rank * row);
    if (wait_for_all(t)) return NULL;
    for (long r = 0; r < t.ranks; r++) good &= weights[r * LINE + 1] != 0;
    for (Py_ssize_t i = start; i < stop && (good || everywhere); i += BLOCK) {
        Py_ssize_t n = stop - i < BLOCK ? stop - i : BLOCK;
        for (long r = 0; r < t.ranks; r++) {
            const float *x = matrix + r * row + i, w = (float)weights[r * LINE];
            if (r == 0)
                for (Py_ssize_t j = 0; j < n; j++) sum[j] = w * x[j];
            else
                for (Py_ssize_t j = 0; j < n; j++) sum[j] += w * x[j];
        }
        good &= all_finite(n, sum);
        for (long r = 0; r < t.ranks; r++)
            if (everywhere || t.rank == r) memcpy(matrix + r * row + i, sum, n * sizeof(float));
    }
    return PyBool_FromLong(good);
}

static PyObject *exchange(PyObject *self, PyObject *args) {
    team t;
    float *params, *shared;
    Py_ssize_t size, start, stop;
    if (!PyArg_ParseTuple(args, TEAM_FORMAT "nnnnn", TEAM(t), &params, &shared, &size, &start, &stop))
        return NULL;
    memcpy(shared + start, params + start, (stop - start) * sizeof(float));
    if (wait_for_all(t)) return NULL;
    memcpy(params, shared, start * sizeof(float));
    memcpy(params + stop, shared + stop, (size - stop) * sizeof(float));
    Py_RETURN_NONE;
}

static PyMethodDef methods[] = {
    {"meet", meet, METH_VARARGS, "meet(*team): sets a flag, and waits for the other ranks."},
    {"average", average, METH_VARARGS,
     "average(*team, matrix, row, size, start, stop, weights, weight, everywhere): waits for the gradients of "
     "all ranks, which are rows, and overwrites a part of this rank's row, or of all rows, with their weighted "
     "sum. Returns False on all ranks if any gradient isn't finite (without `everywhere`, nothing is "
     "overwritten then), and on this rank only if its part of the sum isn't."},
    {"exchange", exchange, METH_VARARGS,
     "exchange(*team, params, shared, size, start, stop): copies a part of the parameters to shared memory, "
     "waits for the other ranks, and copies the other parts from there."},
    {NULL, NULL, 0, NULL}};

static struct PyModuleDef module = {PyModuleDef_HEAD_INIT, .m_name = "_ranks", .m_size = -1, .m_methods = methods};

PyMODINIT_FUNC PyInit__ranks(void) {
    PyObject *made = PyModule_Create(&module);
    if (made) PyModule_AddIntConstant(made, "interface", INTERFACE);
    return made;
}
