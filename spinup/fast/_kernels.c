/* Layers of neural networks on one core of an x86-64 CPU, in float32. kernels.py calls them.

   This file is built if there is a C compiler. Otherwise, or on another CPU, kernels.py uses PyTorch. */

#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <immintrin.h>
#include <math.h>
#include <string.h>

enum { INTERFACE = 2 }; /* counts changes of the functions' arguments, as in kernels.py */

enum { IDENTITY, RELU, TANH }; /* activations, as numbered in kernels.py */

/* Kinds of epilogue: how results `out` are computed from the sums s of a product. f is the activation
   in the name; without one, f is the identity.
     FORWARD   out = f(s + other); other is a vector with one number for each column (the bias)
     BACKWARD  out = s * f'; other is a matrix like out that holds the output of f, which gives f'
     ADD       out += s
     SET       out = s + 0, which is ADD if all of out is zero
   If given, `out_rows[i]` is the row of `out`, and `other_rows[i]` the row of `other`, for row i. */
enum { FORWARD, FORWARD_RELU, FORWARD_TANH, BACKWARD, BACKWARD_RELU, BACKWARD_TANH, ADD, SET };

typedef struct {
    int kind;
    float *out;
    long out_row;
    const float *other;
    long other_row;
    const long *out_rows, *other_rows;
} epilogue;

enum {
    BATCH_ROWS = 512, /* rows of a batch that are processed together and stay in the cache */
    BLOCK_SIZE = 8192, /* floats of a panel that stay in the cache when they are read in any order */
    WIDEST = 128, /* floats in a row of a panel */
};

static float *panel_room; /* memory for one panel; Python's global lock protects all such memory */

static struct { /* the nonzero numbers of a matrix, see compress(); sums of its product; its transpose */
    float *values, *sums, *flipped;
    unsigned short *places; /* less than BATCH_ROWS * WIDEST, which is 65,536 */
    long *starts;
} sparse;

static unsigned char set_bits[256][8]; /* the bits that are set in a byte; the rest are zeros */

static void fill_set_bits(void) {
    for (int byte = 0; byte < 256; byte++)
        for (int bit = 0, n = 0; bit < 8; bit++)
            if (byte >> bit & 1) set_bits[byte][n++] = (unsigned char)bit;
}

#pragma GCC push_options
#pragma GCC target("avx2,fma")
/* Copies the transpose of a block. The probe stays zero if all numbers are finite: only a finite number
   times zero is zero. */
static inline __attribute__((always_inline)) void transpose_8x8(const float *from, long from_row,
                                                                float *to, long to_row,
                                                                __m256 *probe) {
    __m256 r[8], s[8];
    for (int i = 0; i < 8; i++) r[i] = _mm256_loadu_ps(from + i * from_row);
    __m256 sum = ((r[0] + r[1]) + (r[2] + r[3])) + ((r[4] + r[5]) + (r[6] + r[7]));
    *probe += sum * _mm256_setzero_ps();
    for (int i = 0; i < 8; i += 2) {
        s[i] = _mm256_unpacklo_ps(r[i], r[i + 1]);
        s[i + 1] = _mm256_unpackhi_ps(r[i], r[i + 1]);
    }
    for (int i = 0; i < 8; i += 4)
        for (int j = 0; j < 2; j++) {
            r[i + 2 * j] = _mm256_shuffle_ps(s[i + j], s[i + 2 + j], 0x44);
            r[i + 2 * j + 1] = _mm256_shuffle_ps(s[i + j], s[i + 2 + j], 0xee);
        }
    for (int i = 0; i < 4; i++) {
        _mm256_storeu_ps(to + i * to_row, _mm256_permute2f128_ps(r[i], r[i + 4], 0x20));
        _mm256_storeu_ps(to + (i + 4) * to_row, _mm256_permute2f128_ps(r[i], r[i + 4], 0x31));
    }
}

/* Returns the sum of eight numbers; each half is added to the other, then each quarter. */
static inline __attribute__((always_inline)) float sum_8(__m256 x) {
    __m128 s = _mm256_castps256_ps128(x) + _mm256_extractf128_ps(x, 1);
    s += _mm_movehl_ps(s, s);
    return s[0] + s[1];
}

#define VL 8
#define MR 6
#define NAME(f) f##_avx2
#include "_kernels.h"
#undef VL
#undef MR
#undef NAME
#pragma GCC pop_options

#pragma GCC push_options
#pragma GCC target("avx2,fma,avx512f")
#define VL 16
#define MR 14
#define NAME(f) f##_avx512
#include "_kernels.h"
#pragma GCC pop_options

static int has_avx512;
#define product(...) (has_avx512 ? product_avx512 : product_avx2)(__VA_ARGS__)
#define sparse_product(...) (has_avx512 ? sparse_product_avx512 : sparse_product_avx2)(__VA_ARGS__)
#define is_sparse(...) (has_avx512 ? is_sparse_avx512 : is_sparse_avx2)(__VA_ARGS__)
#define transpose(...) (has_avx512 ? transpose_avx512 : transpose_avx2)(__VA_ARGS__)
#define dots(...) (has_avx512 ? dots_avx512 : dots_avx2)(__VA_ARGS__)
#define add_rows(...) (has_avx512 ? add_rows_avx512 : add_rows_avx2)(__VA_ARGS__)
#define all_finite(...) (has_avx512 ? all_finite_avx512 : all_finite_avx2)(__VA_ARGS__)
#define activation_grad(...) (has_avx512 ? activation_grad_avx512 : activation_grad_avx2)(__VA_ARGS__)

static const long MAX_DOT_COLUMNS = 4; /* so few columns aren't worth a panel */

/* --- Networks ------------------------------------------------------------------------------------ */

enum { MOST_LAYERS = 32 };

/* A stack of networks of the same shape, and their layers' outputs on a batch. Layer i maps h[i] to
   h[i + 1]. All networks have the same input h[0]. If `kept` is 0, they share memory for hidden layers. */
typedef struct {
    long layers, stack, rows;
    long size[MOST_LAYERS + 1], activation[MOST_LAYERS];
    float *params[2 * MOST_LAYERS]; /* weight and bias of each layer, in turn */
    float *h[MOST_LAYERS + 1];
    int kept;
} network;

static float *output(const network *net, long layer, long s) {
    int own = layer == net->layers || (layer && net->kept);
    return net->h[layer] + (own ? s * net->rows * net->size[layer] : 0);
}

/* Evaluates network s of a stack. */
static void run_forward(const network *net, long s) {
    for (long i = 0; i < net->layers; i++) {
        long n_in = net->size[i], n_out = net->size[i + 1];
        const float *x = output(net, i, s), *w = net->params[2 * i] + s * n_out * n_in;
        epilogue to = {.kind = FORWARD + (int)net->activation[i], .out = output(net, i + 1, s),
                   .out_row = n_out, .other = net->params[2 * i + 1] + s * n_out};
        if (n_out <= MAX_DOT_COLUMNS)
            dots(net->rows, n_out, n_in, x, w, &to);
        else if (i && net->activation[i - 1] == RELU && is_sparse(net->rows, n_out, n_in, x, n_in))
            sparse_product(net->rows, n_out, n_in, x, n_in, w, n_in, 1, &to);
        else
            product(net->rows, n_out, n_in, x, n_in, 1, w, n_in, 1, &to);
    }
}

/* Adds a batch's gradients of a layer's parameters, from the gradients of its output and its input x.
   If `are_zero`, the sums so far are taken to be zero, whatever the memory holds. */
static void add_param_grads(long rows, long n_in, long n_out, int sparse_grad, const float *grad,
                            const float *x, float *weight_grad, float *bias_grad, int are_zero) {
    epilogue to = {.kind = are_zero ? SET : ADD, .out = weight_grad, .out_row = n_in};
    if (are_zero) memset(bias_grad, 0, n_out * sizeof(float));
    if (are_zero && !rows) memset(weight_grad, 0, n_out * n_in * sizeof(float));
    for (long row = 0; row < rows; row += BATCH_ROWS, to.kind = ADD) {
        long n = rows - row < BATCH_ROWS ? rows - row : BATCH_ROWS;
        const float *g = grad + row * n_out;
        if (sparse_grad && is_sparse(n, n_in, n_out, g, n_out)) {
            transpose(n, n_out, g, sparse.flipped);
            sparse_product(n_out, n_in, n, sparse.flipped, n, x + row * n_in, n_in, 0, &to);
        } else
            product(n_out, n_in, n, g, 1, n_out, x + row * n_in, n_in, 0, &to);
        add_rows(n, n_out, g, bias_grad);
    }
}

/* Copies the rows that aren't all zero, and their indices to `places`. Returns the number of rows. */
static long gather(long rows, long cols, const float *from, float *to, long *places) {
    long n = 0;
    for (long row = 0; row < rows; row++) {
        int zero = 1;
        for (long i = 0; i < cols; i++) zero &= from[row * cols + i] == 0;
        if (zero) continue;
        memmove(to + n * cols, from + row * cols, cols * sizeof(float));
        places[n++] = row;
    }
    return n;
}

/* Adds the gradients of all parameters to `param_grads`, unless it is NULL, and those of some columns of
   the input to `input_grad`. If `are_zero`, `param_grads` are taken to be zero before.

   `rooms` are two arrays of rows times the widest layer; `places` has one number for each row. */
static void run_backward(const network *net, const float *grad, float *const *param_grads,
                         int are_zero, long columns, const long *start, const long *width,
                         float *const *input_grad, float *const *rooms, long *places) {
    for (long s = 0; s < net->stack; s++) {
        long last = net->layers, rows = net->rows, n = rows * net->size[last];
        float *g = rooms[last % 2];
        int activation = (int)net->activation[last - 1];
        activation_grad(n, activation, output(net, last, s), grad + s * n, g);
        const long *gathered = NULL;
        if (!param_grads) { /* omits rows with zero gradients, such as those of the greater critic */
            rows = gather(rows, net->size[last], g, g, places);
            gathered = places;
        }
        for (long i = last - 1; i >= 0; i--) {
            long n_in = net->size[i], n_out = net->size[i + 1];
            const float *x = output(net, i, s), *w = net->params[2 * i] + s * n_out * n_in;
            int of_relu = net->activation[i] == RELU;
            if (param_grads)
                add_param_grads(rows, n_in, n_out, of_relu, g, x, param_grads[2 * i] + s * n_out * n_in,
                                param_grads[2 * i + 1] + s * n_out, are_zero);
            if (i > 0) {
                epilogue to = {.kind = BACKWARD + (int)net->activation[i - 1], .out = rooms[i % 2],
                           .out_row = n_in, .other = x, .other_row = n_in, .other_rows = gathered};
                if (of_relu && is_sparse(rows, n_in, n_out, g, n_out))
                    sparse_product(rows, n_in, n_out, g, n_out, w, n_in, 0, &to);
                else
                    product(rows, n_in, n_out, g, n_out, 1, w, n_in, 0, &to);
                g = rooms[i % 2];
            }
        }
        for (long j = 0; j < columns; j++) {
            epilogue to = {.kind = ADD, .out = input_grad[j], .out_row = width[j], .out_rows = gathered};
            product(rows, width[j], net->size[1], g, net->size[1], 1,
                    net->params[0] + s * net->size[1] * net->size[0] + start[j], net->size[0], 0, &to);
        }
    }
}

/* --- The squashed Gaussian policy ---------------------------------------------------------------- */

/* Returns the clamped log(std). nets.py has the bounds and this section's formulas. NaN stays NaN. */
static float bounded(float log_std, float least, float most) {
    return log_std < least ? least : log_std > most ? most : log_std;
}

/* Samples actions mid + half_range * tanh(u) with u = mu + std * eps, and computes their log-densities.
   Each row of `out`, the network's output, holds mu and then log(std). The gradients need tanh(u) and
   std * eps, which go to `squashed` and `noise`.

   With z = exp(-2|u|) - 1, two formulas are stable: tanh|u| = -z / (2 + z), and
   log(1 - tanh(u)^2) = 2 (log 2 - |u| - log(2 + z)). The sum of log(2 + z) over dimensions is computed
   as the logarithm of a product. */
static void squash(long rows, long dim, const float *out, const float *eps, const float *mid,
                   const float *half_range, float *act, float *logp, float *squashed, float *noise,
                   float least, float most) {
    const double log_2 = 0.69314718055994531, half_log_2_pi = 0.91893853320467274;
    for (long row = 0; row < rows; row++, out += 2 * dim) {
        double sum = -dim * (half_log_2_pi + 2 * log_2), product = 1;
        for (long i = 0; i < dim; i++, act++, squashed++, noise++, eps++) {
            float log_std = bounded(out[dim + i], least, most);
            *noise = expf(log_std) * *eps;
            float u = out[i] + *noise, z = expm1f(-2 * fabsf(u));
            *squashed = copysignf(-z / (2 + z), u);
            *act = mid[i] + half_range[i] * *squashed;
            sum += 2 * fabsf(u) - log_std - 0.5f * *eps * *eps;
            product *= 2 + z;
            if (product > 1e300) {
                sum += 2 * log(product);
                product = 1;
            }
        }
        logp[row] = (float)(sum + 2 * log(product));
    }
}

/* Computes the gradient of the network's output from those of the actions and log-densities. */
static void squash_grad(long rows, long dim, const float *out, const float *half_range,
                        const float *squashed, const float *noise, const float *act_grad,
                        const float *logp_grad, float *grad, float least, float most) {
    for (long row = 0; row < rows; row++, out += 2 * dim, grad += 2 * dim)
        for (long i = 0; i < dim; i++, squashed++, noise++, act_grad++) {
            float t = *squashed, log_std = out[dim + i];
            grad[i] = *act_grad * half_range[i] * (1 - t * t) + 2 * logp_grad[row] * t;
            int clamped = log_std < least || log_std > most;
            grad[dim + i] = clamped ? 0 : grad[i] * *noise - logp_grad[row];
        }
}

/* --- Operations on few numbers ------------------------------------------------------------------- */

enum { NEG, COPY, MUL, PLUS, MINUS, DIV, MIN, EQ, CLAMP, ADDCMUL, SUM }; /* as numbered in fusing.py */
enum { FLOAT32, BOOL, INT64 };
enum { MOST_NUMBERS = 1024 }; /* of an operand */

/* A matrix in memory; distances between rows and columns are in bytes, and 0 if they are all the same. */
typedef struct {
    char *at;
    long row, col, type;
} operand;

typedef struct {
    long code, rows, cols; /* of the operands, and of the result unless it is a sum */
    operand result, x[3];
} operation;

#define COPY_AS(type)                                                              \
    for (long i = 0; i < op->rows; i++)                                            \
        for (long j = 0; j < op->cols; j++)                                        \
            *to++ = (float)*(const type *)(x->at + i * x->row + j * x->col);

static void read_operand(const operation *op, const operand *x, float *to) {
    if (x->type == FLOAT32) COPY_AS(float)
    else if (x->type == BOOL) COPY_AS(unsigned char)
    else COPY_AS(long)
}
#undef COPY_AS

#define EACH(expression)                \
    for (long i = 0; i < n; i++) {      \
        float a = x[0][i], b = x[1][i]; \
        (void)b;                        \
        y[i] = expression;              \
    }                                   \
    break;

/* Adds n numbers in PyTorch's order (but for n = 5, 6, 7): four vectors of eight sums take turns, each
   sum joins an outer one after 16 numbers, and the numbers after the last vector come first. */
static float sum_in_order(long n, const float *x) {
    float inner[4][8] = {{0}}, outer[4][8] = {{0}}, total = 0;
    long vectors = n / 8, turns = vectors / 4;
    for (long turn = 0; turn < turns; turn++)
        for (long k = 0; k < 4; k++)
            for (long i = 0; i < 8; i++) {
                inner[k][i] += x[(4 * turn + k) * 8 + i];
                if (turn % 16 < 15) continue;
                outer[k][i] += inner[k][i];
                inner[k][i] = 0;
            }
    for (long k = 0; k < 4; k++)
        for (long i = 0; i < 8; i++) inner[k][i] += outer[k][i];
    for (long v = 4 * turns; v < vectors; v++)
        for (long i = 0; i < 8; i++) inner[0][i] += x[8 * v + i];
    for (long k = 1; k < 4; k++)
        for (long i = 0; i < 8; i++) inner[0][i] += inner[k][i];
    for (long i = 8 * vectors; i < n; i++) total += x[i];
    for (long i = 0; i < 8; i++) total += inner[0][i];
    return total;
}

#pragma GCC push_options
#pragma GCC target("avx2,fma")
/* Computes what PyTorch's operations compute, to the bit. NaN stays NaN. */
static void compute(const operation *op) {
    static float x[3][MOST_NUMBERS], y[MOST_NUMBERS];
    long n = op->rows * op->cols;
    for (int k = 0; k < 3 && op->x[k].at; k++) read_operand(op, &op->x[k], x[k]);
    switch (op->code) {
        case NEG: EACH(-a)
        case COPY: EACH(a)
        case MUL: EACH(a * b)
        case PLUS: EACH(a + b)
        case MINUS: EACH(a - b)
        case DIV: EACH(a / b)
        case MIN: /* of 0 and -0, PyTorch takes the second in blocks of 32 numbers, then the first */
            for (long i = 0; i < n; i++) {
                float a = x[0][i], b = x[1][i];
                y[i] = i < n / 32 * 32 ? (a != a || a < b ? a : b) : (b != b || b < a ? b : a);
            }
            break;
        case EQ: EACH(a == b)
        case CLAMP:
            for (long i = 0; i < n; i++) {
                float a = x[0][i], least = x[1][i], most = x[2][i];
                a = a < least || least != least ? least : a;
                y[i] = a > most || most != most ? most : a;
            }
            break;
        case ADDCMUL:
            for (long i = 0; i < n; i++) y[i] = __builtin_fmaf(x[1][i], x[2][i], x[0][i]);
            break;
        case SUM:
            y[0] = sum_in_order(n, x[0]);
            n = 1;
    }
    if (op->result.type == BOOL)
        for (long i = 0; i < n; i++) ((unsigned char *)op->result.at)[i] = (unsigned char)y[i];
    else if (op->result.type == INT64)
        for (long i = 0; i < n; i++) ((long *)op->result.at)[i] = (long)y[i];
    else
        memcpy(op->result.at, y, n * sizeof(float));
}
#undef EACH
#pragma GCC pop_options

/* --- From Python --------------------------------------------------------------------------------- */

/* Enlarges memory that is reused by later calls. On failure, sets an exception and returns 0. */
static int make_room(void **room, size_t *has, size_t bytes) {
    if (bytes <= *has) return 1;
    free(*room);
    *room = aligned_alloc(64, (bytes + 63) / 64 * 64);
    *has = *room ? bytes : 0;
    if (!*room) PyErr_NoMemory();
    return *room != NULL;
}

/* Allocates `sparse` for a matrix of at most `tall` rows and columns. */
static int make_sparse_room(long tall) {
    static void *room;
    static size_t has;
    size_t most = tall * tall + 16, before = has; /* +16: the last write is a whole vector */
    size_t starts = tall * (tall * WIDEST / BLOCK_SIZE + 1) + 1, sums = tall * WIDEST;
    if (!make_room(&room, &has, (3 * most + sums) * sizeof(float) + starts * sizeof(long) + 64))
        return 0;
    if (has == before) return 1;
    sparse.starts = room;
    sparse.sums = (float *)((char *)room + (starts * sizeof(long) + 63) / 64 * 64);
    sparse.values = sparse.sums + sums;
    sparse.flipped = sparse.values + most;
    sparse.places = (unsigned short *)(sparse.flipped + most);
    return 1;
}

/* Reads integers or addresses from a tuple. Returns their number; on failure, sets an exception and
   returns -1. */
static long read_numbers(PyObject *tuple, long most, long *values) {
    if (!PyTuple_Check(tuple) || PyTuple_GET_SIZE(tuple) > most) {
        PyErr_Format(PyExc_TypeError, "a tuple of at most %ld numbers is needed", most);
        return -1;
    }
    for (long i = 0; i < PyTuple_GET_SIZE(tuple); i++) {
        values[i] = PyLong_AsLong(PyTuple_GET_ITEM(tuple, i));
        if (values[i] == -1 && PyErr_Occurred()) return -1;
    }
    return (long)PyTuple_GET_SIZE(tuple);
}

/* Reads a network from the first seven arguments: number of networks in the stack; number of rows;
   sizes; activations; parameters; memory for the input and then each hidden layer's output, or 0 to not
   keep them; memory for the result. On failure, sets an exception and returns 0. */
static int read_network(PyObject *const *args, Py_ssize_t given, Py_ssize_t wanted, network *net) {
    static void *room;
    static size_t has, panel_has;
    if (given != wanted) {
        PyErr_Format(PyExc_TypeError, "%zd arguments are needed, not %zd", wanted, given);
        return 0;
    }
    net->stack = PyLong_AsLong(args[0]);
    net->rows = PyLong_AsLong(args[1]);
    long sizes = read_numbers(args[2], MOST_LAYERS + 1, net->size);
    net->layers = read_numbers(args[3], MOST_LAYERS, net->activation);
    long params = read_numbers(args[4], 2 * MOST_LAYERS, (long *)net->params);
    float *h = (float *)PyLong_AsLong(args[5]), *result = (float *)PyLong_AsLong(args[6]);
    if (PyErr_Occurred()) return 0;
    if (net->layers < 1 || sizes != net->layers + 1 || params != 2 * net->layers) {
        PyErr_SetString(PyExc_ValueError, "the numbers of sizes, activations and parameters don't match");
        return 0;
    }
    long widest = 0;
    for (long i = 0; i < sizes; i++) widest = net->size[i] > widest ? net->size[i] : widest;
    long tall = widest > BATCH_ROWS ? widest : BATCH_ROWS; /* rows of a panel */
    if (!make_room((void **)&panel_room, &panel_has, tall * WIDEST * sizeof(float))) return 0;
    if (!make_sparse_room(tall)) return 0;
    net->kept = h != NULL;
    if (!net->kept) { /* layers alternate between two arrays, which stay in the cache */
        if (!make_room(&room, &has, 2 * net->rows * widest * sizeof(float))) return 0;
        for (long i = 0; i < net->layers; i++) net->h[i] = (float *)room + i % 2 * net->rows * widest;
    } else
        for (long i = 0; i < net->layers; i++) {
            net->h[i] = h;
            h += (i ? net->stack : 1) * net->rows * net->size[i];
        }
    net->h[net->layers] = result;
    return 1;
}

static PyObject *mlp_forward(PyObject *self, PyObject *const *args, Py_ssize_t given) {
    network net;
    long inputs[3 * MOST_LAYERS]; /* for each input: address, distance between rows, width */
    if (!read_network(args, given, 8, &net)) return NULL;
    long n = read_numbers(args[7], 3 * MOST_LAYERS, inputs);
    if (n < 0) return NULL;
    for (long s = 0; s < net.stack; s++) {
        float *x = net.h[0];
        if (s == 0 || !net.kept)
            for (long row = 0; row < net.rows; row++)
                for (long i = 0; i < n; i += 3) {
                    memcpy(x, (float *)inputs[i] + row * inputs[i + 1], inputs[i + 2] * sizeof(float));
                    x += inputs[i + 2];
                }
        run_forward(&net, s);
    }
    Py_RETURN_NONE;
}

static PyObject *mlp_backward(PyObject *self, PyObject *const *args, Py_ssize_t given) {
    static void *room;
    static size_t has;
    network net;
    long param_grads[2 * MOST_LAYERS], inputs[3 * MOST_LAYERS], start[MOST_LAYERS], width[MOST_LAYERS];
    float *input_grad[MOST_LAYERS];
    if (!read_network(args, given, 11, &net)) return NULL;
    const float *grad = (float *)PyLong_AsLong(args[7]);
    long params = read_numbers(args[8], 2 * MOST_LAYERS, param_grads);
    long columns = read_numbers(args[9], 3 * MOST_LAYERS, inputs) / 3;
    int are_zero = PyObject_IsTrue(args[10]);
    if (PyErr_Occurred()) return NULL;
    for (long j = 0; j < columns; j++) {
        start[j] = inputs[3 * j];
        width[j] = inputs[3 * j + 1];
        input_grad[j] = (float *)inputs[3 * j + 2];
    }
    long widest = 0;
    for (long i = 1; i <= net.layers; i++) widest = net.size[i] > widest ? net.size[i] : widest;
    if (!make_room(&room, &has, net.rows * (2 * widest * sizeof(float) + sizeof(long)))) return NULL;
    long *places = room;
    float *first = (float *)(places + net.rows), *rooms[2] = {first, first + net.rows * widest};
    run_backward(&net, grad, params ? (float *const *)param_grads : NULL, are_zero, columns, start,
                 width, input_grad, rooms, places);
    Py_RETURN_NONE;
}

/* Reads integers or addresses, and then floats. On failure, sets an exception and returns 0. */
static int read_args(PyObject *const *args, Py_ssize_t given, Py_ssize_t integers, long *values,
                     Py_ssize_t floats, double *numbers) {
    if (given != integers + floats) {
        PyErr_Format(PyExc_TypeError, "%zd arguments are needed, not %zd", integers + floats, given);
        return 0;
    }
    for (Py_ssize_t i = 0; i < integers; i++) values[i] = PyLong_AsLong(args[i]);
    for (Py_ssize_t i = 0; i < floats; i++) numbers[i] = PyFloat_AsDouble(args[integers + i]);
    return !PyErr_Occurred();
}

static PyObject *squashed_gaussian(PyObject *self, PyObject *const *args, Py_ssize_t given) {
    long v[10];
    double bounds[2];
    if (!read_args(args, given, 10, v, 2, bounds)) return NULL;
    squash(v[0], v[1], (float *)v[2], (float *)v[3], (float *)v[4], (float *)v[5], (float *)v[6],
           (float *)v[7], (float *)v[8], (float *)v[9], (float)bounds[0], (float)bounds[1]);
    Py_RETURN_NONE;
}

static PyObject *squashed_gaussian_grad(PyObject *self, PyObject *const *args, Py_ssize_t given) {
    long v[9];
    double bounds[2];
    if (!read_args(args, given, 9, v, 2, bounds)) return NULL;
    squash_grad(v[0], v[1], (float *)v[2], (float *)v[3], (float *)v[4], (float *)v[5],
                (float *)v[6], (float *)v[7], (float *)v[8], (float)bounds[0], (float)bounds[1]);
    Py_RETURN_NONE;
}

static PyObject *is_finite(PyObject *self, PyObject *const *args, Py_ssize_t given) {
    long v[2];
    if (!read_args(args, given, 2, v, 0, NULL)) return NULL;
    return PyBool_FromLong(all_finite(v[0], (float *)v[1]));
}

static PyObject *adam(PyObject *self, PyObject *const *args, Py_ssize_t given) {
    long v[7];
    double f[4];
    if (!read_args(args, given, 7, v, 4, f)) return NULL;
    long start = v[0], n = v[1] - start;
    (has_avx512 ? adam_avx512 : adam_avx2)(n, (float *)v[2] + start, (float *)v[3] + start,
                                           (float *)v[4] + start, (float *)v[5] + start, f[0], f[1],
                                           f[2], f[3], v[6]);
    Py_RETURN_NONE;
}

/* Runs operations one after the other. Each gets its operands' numbers before it writes its result. */
static PyObject *compute_all(PyObject *self, PyObject *const *args, Py_ssize_t given) {
    long v[2];
    if (!read_args(args, given, 2, v, 0, NULL)) return NULL;
    for (long i = 0; i < v[0]; i++) compute((operation *)v[1] + i);
    Py_RETURN_NONE;
}

static PyObject *use_avx512(PyObject *self, PyObject *flag) {
    has_avx512 = PyObject_IsTrue(flag) && __builtin_cpu_supports("avx512f");
    return PyBool_FromLong(has_avx512);
}

static PyObject *has_avx512_now(PyObject *self, PyObject *none) { return PyBool_FromLong(has_avx512); }

#define METHOD(name, doc) {#name, (PyCFunction)(void (*)(void))name, METH_FASTCALL, doc}
static PyMethodDef methods[] = {
    METHOD(mlp_forward, "mlp_forward(stack, rows, sizes, activations, params, outputs, result, inputs)"),
    METHOD(mlp_backward, "mlp_backward(stack, rows, sizes, activations, params, outputs, result, grad, "
                         "param_grads, input_grads, are_zero)"),
    METHOD(squashed_gaussian, "squashed_gaussian(rows, dim, out, eps, mid, half_range, act, logp, "
                              "squashed, noise, least, most)"),
    METHOD(squashed_gaussian_grad, "squashed_gaussian_grad(rows, dim, out, half_range, squashed, noise, "
                                   "act_grad, logp_grad, grad, least, most)"),
    METHOD(is_finite, "is_finite(size, x)"),
    METHOD(compute_all, "compute_all(count, operations)"),
    METHOD(adam, "adam(start, stop, params, grads, m, v, step, lr, beta1, beta2, eps)"),
    {"has_avx512", has_avx512_now, METH_NOARGS, "Returns whether the longer vectors are in use."},
    {"use_avx512", use_avx512, METH_O, "Chooses the longer vectors if the CPU has them, and returns True if they are in use."},
    {NULL, NULL, 0, NULL}};

static struct PyModuleDef module = {
    PyModuleDef_HEAD_INIT, .m_name = "_kernels", .m_size = -1, .m_methods = methods};

PyMODINIT_FUNC PyInit__kernels(void) {
    __builtin_cpu_init();
    if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma")) {
        PyErr_SetString(PyExc_ImportError, "this CPU has no AVX2");
        return NULL;
    }
    has_avx512 = __builtin_cpu_supports("avx512f");
    fill_set_bits();
    PyObject *made = PyModule_Create(&module);
    if (made) PyModule_AddIntConstant(made, "interface", INTERFACE);
    return made;
}
