/* How the ranks of one host meet, and sum their gradients, in memory that they share. shared.py calls it.

   This file is built if there is a C compiler. Otherwise shared.py does the same in Python. */

#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <sched.h>
#include <string.h>
#include <time.h>

enum {
    LINE = 8,             /* numbers between two flags or weights, so that each has its own cache line */
    SPINS = 4000,         /* about 20 to 50 microseconds: longer than most differences between ranks */
    SPINS_PER_YIELD = 200, /* so that ranks that share a core make way for each other */
    SLEEP = 50000,        /* nanoseconds */
    SLEEPS = 400,         /* then return, so that Python handles signals */
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

static PyObject *meet(PyObject *self, PyObject *args) {
    Py_ssize_t address;
    long rank, ranks;
    long long count;
    int met;
    if (!PyArg_ParseTuple(args, "nllL", &address, &rank, &ranks, &count)) return NULL;
    long long *flags = (long long *)address;
    __atomic_store_n(flags + rank * LINE, count, __ATOMIC_RELEASE);
    if (all_reached(flags, ranks, count)) Py_RETURN_TRUE;
    Py_BEGIN_ALLOW_THREADS
    met = 0;
    for (int i = 1; !met && i <= SPINS; i++) {
        if (i % SPINS_PER_YIELD)
            pause_briefly();
        else
            sched_yield();
        met = all_reached(flags, ranks, count);
    }
    for (int i = 0; !met && i < SLEEPS; i++) {
        nanosleep(&(struct timespec){.tv_nsec = SLEEP}, NULL);
        met = all_reached(flags, ranks, count);
    }
    Py_END_ALLOW_THREADS
    return PyBool_FromLong(met);
}

static PyObject *average(PyObject *self, PyObject *args) {
    Py_ssize_t address, row, start, stop, place;
    long rows, only;
    if (!PyArg_ParseTuple(args, "nnlnnnl", &address, &row, &rows, &start, &stop, &place, &only))
        return NULL;
    float sum[BLOCK], *matrix = (float *)address;
    const double *weights = (double *)place;
    for (Py_ssize_t i = start; i < stop; i += BLOCK) {
        Py_ssize_t n = stop - i < BLOCK ? stop - i : BLOCK;
        for (long r = 0; r < rows; r++) {
            const float *x = matrix + r * row + i, weight = (float)weights[r * LINE];
            if (r == 0)
                for (Py_ssize_t j = 0; j < n; j++) sum[j] = weight * x[j];
            else
                for (Py_ssize_t j = 0; j < n; j++) sum[j] += weight * x[j];
        }
        for (long r = 0; r < rows; r++)
            if (only < 0 || only == r) memcpy(matrix + r * row + i, sum, n * sizeof(float));
    }
    Py_RETURN_NONE;
}

static PyMethodDef methods[] = {
    {"meet", meet, METH_VARARGS,
     "meet(flags, rank, ranks, count): sets a flag, and waits for the others. Returns False if they "
     "take long."},
    {"average", average, METH_VARARGS,
     "average(matrix, row, rows, start, stop, weights, only): overwrites a part of each row, or of one "
     "row only, with the weighted sum of all rows."},
    {NULL, NULL, 0, NULL}};

static struct PyModuleDef module = {PyModuleDef_HEAD_INIT, .m_name = "_ranks", .m_size = -1, .m_methods = methods};

PyMODINIT_FUNC PyInit__ranks(void) { return PyModule_Create(&module); }
