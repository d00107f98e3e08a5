/* Fully connected layers for one vector length. _kernels.c includes this file once for each length,
   and defines VL, the number of floats in a vector; MR, the number of rows in a tile; and NAME(f), the
   name of the function f for this length.

   A product is split into panels, two vectors wide, and each panel into tiles of MR rows. The sums of a
   tile stay in registers during the loop over the inner dimension. Each iteration takes two loads and
   MR broadcasts for 2 MR multiply-adds, which limit the speed. Each sum adds its terms in the order of
   their index. Therefore no row's result depends on other rows, and no result depends on VL.

   After a ReLU, most outputs and their gradients soon become zero: on HalfCheetah 55% of those of the
   first layer and, after some thousand updates, 90% of those of the second. Such a product is faster
   over the nonzero numbers only. The result is the same to the bit, because the omitted terms are zero
   (if the other factor is finite: see sparse_product). Each nonzero number multiplies a row of a panel
   that is SPARSE_WIDTH floats wide, with one load for each multiply-add. The eight sums of a row keep two
   multiply-add units busy, each of which takes four cycles for a sum. */

#define vec NAME(vec)
#define unaligned NAME(unaligned)
#define ints NAME(ints)
#define WIDTH (2 * VL)
#define SPARSE_WIDTH (8 * VL)
#define BLOCK_ROWS (BLOCK_SIZE / SPARSE_WIDTH)
#define INLINE static inline __attribute__((always_inline))

typedef float vec __attribute__((vector_size(4 * VL)));
typedef int ints __attribute__((vector_size(4 * VL)));
typedef float unaligned __attribute__((vector_size(4 * VL), aligned(4), may_alias));
#if VL == 16
static const ints NAME(places) = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
#else
static const ints NAME(places) = {0, 1, 2, 3, 4, 5, 6, 7};
#endif

/* sums[i][n] = sum over k of a[i * a_row + k * a_col] * b[k * b_row + n] */
INLINE void NAME(tile)(const int rows, const int vectors, long inner, const float *a, long a_row,
                       long a_col, const float *b, long b_row, float *sums) {
    vec acc[MR][2];
#pragma GCC unroll 16
    for (int i = 0; i < rows; i++)
#pragma GCC unroll 2
        for (int j = 0; j < vectors; j++) acc[i][j] = (vec){0};
    for (long k = 0; k < inner; k++) {
        vec bs[2];
#pragma GCC unroll 2
        for (int j = 0; j < vectors; j++) bs[j] = *(const unaligned *)(b + k * b_row + j * VL);
#pragma GCC unroll 16
        for (int i = 0; i < rows; i++)
#pragma GCC unroll 2
            for (int j = 0; j < vectors; j++) acc[i][j] += a[i * a_row + k * a_col] * bs[j];
    }
#pragma GCC unroll 16
    for (int i = 0; i < rows; i++)
#pragma GCC unroll 2
        for (int j = 0; j < vectors; j++) *(vec *)(sums + i * WIDTH + j * VL) = acc[i][j];
}

/* Calls tile() with a number of rows that is known at compile time. */
#define CASE(m)                                                                                     \
    case m:                                                                                         \
        if (vectors == 2)                                                                           \
            NAME(tile)(m, 2, inner, a, a_row, a_col, b, b_row, sums);                               \
        else                                                                                        \
            NAME(tile)(m, 1, inner, a, a_row, a_col, b, b_row, sums);                               \
        break;
static void NAME(any_tile)(int rows, int vectors, long inner, const float *a, long a_row, long a_col,
                           const float *b, long b_row, float *sums) {
    switch (rows) {
        CASE(1) CASE(2) CASE(3) CASE(4) CASE(5) CASE(6)
#if MR > 6
        CASE(7) CASE(8) CASE(9) CASE(10) CASE(11) CASE(12) CASE(13) CASE(14)
#endif
    }
}
#undef CASE

/* Loads up to n numbers; the rest of the vector is zero. */
INLINE vec NAME(load)(const float *p, long n) {
    if (n >= VL) return *(const unaligned *)p;
#if VL == 16
    return (vec)_mm512_maskz_loadu_ps((__mmask16)((1 << n) - 1), p);
#else
    return (vec)_mm256_maskload_ps(p, (__m256i)(NAME(places) < (int)n));
#endif
}

/* Stores up to n numbers. */
INLINE void NAME(store)(float *p, vec v, long n) {
    if (n >= VL)
        *(unaligned *)p = v;
    else
#if VL == 16
        _mm512_mask_storeu_ps(p, (__mmask16)((1 << n) - 1), (__m512)v);
#else
        _mm256_maskstore_ps(p, (__m256i)(NAME(places) < (int)n), (__m256)v);
#endif
}

INLINE vec NAME(all)(float x) { return x + (vec){0}; } /* but -0 becomes 0 */

/* Returns a * b + c, rounded once. */
INLINE vec NAME(fma)(vec a, vec b, vec c) {
#if VL == 16
    return (vec)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#else
    return (vec)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#endif
}

INLINE vec NAME(sqrt)(vec x) {
#if VL == 16
    return (vec)_mm512_sqrt_ps((__m512)x);
#else
    return (vec)_mm256_sqrt_ps((__m256)x);
#endif
}

/* Returns x, with zeros where a mask is set. A comparison with NaN sets no mask, so NaN stays NaN. */
INLINE vec NAME(zero_where)(ints mask, vec x) { return (vec)(~mask & (ints)x); }

/* tanh, within two units in the last place. It is exactly +-1 for |x| >= 9.02, as in PyTorch. With a
   smaller value, 1 - tanh^2 would never vanish, and Adam would turn that gradient into full steps.

   It is a polynomial for |x| < 5/8, otherwise 1 - 2 / (exp(2|x|) + 1), with exp(z) = 2^n exp(r). Both
   polynomials are from Cephes, in single precision. */
INLINE vec NAME(tanh)(vec x) {
    const ints sign = (ints)x & (int)0x80000000;
    vec a = (vec)((ints)x ^ sign), s = a * a;
    const vec ten = (vec){0} + 10; /* above 9.02, but exp is still finite */
    ints above = a > ten;          /* false for NaN, so that NaN stays NaN */

    vec small = s * -5.70498872745e-3f + 2.06390887954e-2f;
    small = s * small + -5.37397155531e-2f;
    small = s * small + 1.33314422036e-1f;
    small = s * small + -3.33332819422e-1f;
    small = s * small * a + a;

    vec z = 2 * (vec)((above & (ints)ten) | (~above & (ints)a));
    const vec shift = (vec){0} + 12582912; /* 1.5 * 2^23: adding it rounds to an integer */
    vec shifted = z * 1.44269504088896341f + shift, n = shifted - shift;
    vec r = z - n * 0.693359375f - n * -2.12194440e-4f;
    vec e = r * 1.9875691500e-4f + 1.3981999507e-3f;
    e = r * e + 8.3334519073e-3f;
    e = r * e + 4.1665795894e-2f;
    e = r * e + 1.6666665459e-1f;
    e = r * e + 5.0000001201e-1f;
    e = r * r * e + r + 1;
    e *= (vec)(((ints)shifted + 127) << 23);
    vec large = 1 - 2 / (e + 1);

    ints is_large = a >= 0.625f;
    return (vec)(sign | (is_large & (ints)large) | (~is_large & (ints)small));
}

/* Computes and stores up to VL results: see the enum of epilogues in _kernels.c. */
INLINE void NAME(finish)(const int kind, const float *sums, const float *other, float *out, int n) {
    vec v = *(const vec *)sums;
    vec x = NAME(load)(kind == ADD ? out : other, n);
    if (kind <= FORWARD_TANH || kind == ADD) v += x;
    if (kind == SET) v += 0; /* a sum may underflow to -0, and -0 + 0 is 0 */
    if (kind == FORWARD_RELU) v = NAME(zero_where)(v < 0, v);
    if (kind == FORWARD_TANH) v = NAME(tanh)(v);
    if (kind == BACKWARD_RELU) v = NAME(zero_where)(x <= 0, v);
    if (kind == BACKWARD_TANH) v *= 1 - x * x; /* one rounding: a fused multiply-add */
    NAME(store)(out, v, n);
}

/* Does so for the sums of a tile. */
INLINE void NAME(apply_epilogue_as)(const int kind, const epilogue *to, const float *sums, long row,
                                    int rows, long col, int cols) {
    const int is_forward = kind <= FORWARD_TANH;
    const int is_used = is_forward || kind == BACKWARD_RELU || kind == BACKWARD_TANH; /* `other` */
    for (int i = 0; i < rows; i++) {
        long at = to->out_rows ? to->out_rows[row + i] : row + i;
        long from = is_forward ? 0 : to->other_rows ? to->other_rows[row + i] : row + i;
        float *out = to->out + at * to->out_row + col;
        const float *other = is_used ? to->other + from * to->other_row + col : out;
        int n = 0;
        for (; n + VL <= cols; n += VL)
            NAME(finish)(kind, sums + i * WIDTH + n, other + n, out + n, VL);
        if (n < cols) NAME(finish)(kind, sums + i * WIDTH + n, other + n, out + n, cols - n);
    }
}

#define CASE(kind) \
    case kind: NAME(apply_epilogue_as)(kind, to, sums, row, rows, col, cols); break;
static void NAME(apply_epilogue)(const epilogue *to, const float *sums, long row, int rows, long col,
                                 int cols) {
    switch (to->kind) {
        CASE(FORWARD) CASE(FORWARD_RELU) CASE(FORWARD_TANH)
        CASE(BACKWARD) CASE(BACKWARD_RELU) CASE(BACKWARD_TANH) CASE(ADD)
        CASE(SET)
    }
}
#undef CASE

/* Returns 1 if all probes are zero. A probe is a sum of numbers times zero: zero if all are finite. */
INLINE int NAME(all_zero)(long n, const float *probe) {
    int zero = 1;
    for (long i = 0; i < n; i++) zero &= probe[i] == 0;
    return zero;
}

/* Copies columns of b to a panel of `width` columns, the rest of them zero. Returns 1 if all numbers are
   finite. */
static int NAME(copy_panel)(const float *b, long b_row, long inner, int cols, int width,
                            float *panel) {
    vec probe[SPARSE_WIDTH / VL] = {{0}};
    memset(panel, 0, cols < width ? inner * width * sizeof(float) : 0);
    for (long k = 0; k < inner; k++)
#pragma GCC unroll 8
        for (int j = 0; j < SPARSE_WIDTH / VL; j++) {
            if (j * VL >= cols) break;
            vec v = NAME(load)(b + k * b_row + j * VL, cols - j * VL);
            probe[j] += 0 * v;
            *(unaligned *)(panel + k * width + j * VL) = v;
        }
    return NAME(all_zero)(SPARSE_WIDTH, (const float *)probe);
}

/* Does the same as copy_panel for the transpose of b: rows of b become columns of the panel. */
static int NAME(transpose_panel)(const float *b, long b_row, long inner, int cols, int width,
                                 float *panel) {
    __m256 probe = _mm256_setzero_ps();
    float rest = 0;
    memset(panel, 0, cols < width ? inner * width * sizeof(float) : 0);
    long k = 0;
    for (; k + 16 <= inner; k += 16) { /* whole cache lines */
        int n = 0;
        for (; n + 8 <= cols; n += 8)
            for (int i = 0; i < 16; i += 8)
                transpose_8x8(b + n * b_row + k + i, b_row, panel + (k + i) * width + n, width, &probe);
        for (; n < cols; n++)
            for (int i = 0; i < 16; i++) {
                panel[(k + i) * width + n] = b[n * b_row + k + i];
                rest += 0 * b[n * b_row + k + i];
            }
    }
    for (; k < inner; k++)
        for (int n = 0; n < cols; n++) {
            panel[k * width + n] = b[n * b_row + k];
            rest += 0 * b[n * b_row + k];
        }
    return NAME(all_zero)(8, (const float *)&probe) && rest == 0;
}

/* Computes the same as product for a single column of `a` and row of `b`. */
static void NAME(outer_product)(long rows, long cols, const float *a, long a_row, const float *b,
                                const epilogue *to) {
    float sums[SPARSE_WIDTH] __attribute__((aligned(64)));
    for (long row = 0; row < rows; row++)
        for (long col = 0; col < cols; col += SPARSE_WIDTH) {
            int wide = cols - col < SPARSE_WIDTH ? (int)(cols - col) : SPARSE_WIDTH;
            for (int n = 0; n < wide; n += VL)
                *(vec *)(sums + n) = a[row * a_row] * NAME(load)(b + col + n, wide - n);
            NAME(apply_epilogue)(to, sums, row, 1, col, wide);
        }
}

/* Passes to an epilogue the sums over k of a[i * a_row + k * a_col] * b[k * b_row + n], or, if
   `transposed`, of a[i * a_row + k * a_col] * b[n * b_row + k]. */
static void NAME(product)(long rows, long cols, long inner, const float *a, long a_row, long a_col,
                          const float *b, long b_row, int transposed, const epilogue *to) {
    float sums[MR * WIDTH] __attribute__((aligned(64)));
    long tiles = (rows + MR - 1) / MR;
    if (inner == 1 && !transposed) {
        NAME(outer_product)(rows, cols, a, a_row, b, to);
        return;
    }
    for (long col = 0; col < cols; col += WIDTH) {
        int wide = cols - col < WIDTH ? (int)(cols - col) : WIDTH;
        int vectors = wide > VL ? 2 : 1, width = vectors * VL;
        const float *panel = b + (transposed ? col * b_row : col);
        long panel_row = b_row;
        if (transposed || wide < width) {
            (transposed ? NAME(transpose_panel) : NAME(copy_panel))(panel, b_row, inner, wide, width,
                                                                   panel_room);
            panel = panel_room;
            panel_row = width;
        }
        for (long i = 0, row = 0; i < tiles; i++) {
            int tall = (int)((rows - row + tiles - i - 1) / (tiles - i)); /* tiles of similar height */
            NAME(any_tile)(tall, vectors, inner, a + row * a_row, a_row, a_col, panel, panel_row, sums);
            NAME(apply_epilogue)(to, sums, row, tall, col, wide);
            row += tall;
        }
    }
}

/* Compresses a matrix to its nonzero values, row by row and, within a row, in blocks of BLOCK_ROWS
   columns. `sparse.places` gets, for each value, the position of the panel's row that it multiplies;
   `sparse.starts`, for each block, the index of its first value. */
static void NAME(compress)(long rows, long cols, const float *a, long a_row) {
    long n = 0, *start = sparse.starts;
    for (long row = 0; row < rows; row++, a += a_row)
        for (long block = 0; block < cols; block += BLOCK_ROWS) {
            long col = block, end = block + BLOCK_ROWS < cols ? block + BLOCK_ROWS : cols;
            *start++ = n;
            for (; col + VL <= end; col += VL) {
#if VL == 16
                __m512 x = _mm512_loadu_ps(a + col);
                __mmask16 kept = _mm512_cmp_ps_mask(x, _mm512_setzero_ps(), _CMP_NEQ_UQ);
                __m512i places = (__m512i)((NAME(places) + (int)col) * SPARSE_WIDTH);
                _mm512_storeu_ps(sparse.values + n, _mm512_maskz_compress_ps(kept, x));
                places = _mm512_maskz_compress_epi32(kept, places);
                _mm256_storeu_si256((__m256i *)(sparse.places + n), _mm512_cvtepi32_epi16(places));
#else
                __m256 x = _mm256_loadu_ps(a + col);
                int kept = _mm256_movemask_ps(_mm256_cmp_ps(x, _mm256_setzero_ps(), _CMP_NEQ_UQ));
                __m128i which = _mm_loadl_epi64((const __m128i *)set_bits[kept]);
                __m128i places = _mm_add_epi16(_mm_cvtepu8_epi16(which), _mm_set1_epi16((short)col));
                places = _mm_mullo_epi16(places, _mm_set1_epi16(SPARSE_WIDTH));
                x = _mm256_permutevar8x32_ps(x, _mm256_cvtepu8_epi32(which));
                _mm256_storeu_ps(sparse.values + n, x);
                _mm_storeu_si128((__m128i *)(sparse.places + n), places);
#endif
                n += __builtin_popcount(kept);
            }
            for (; col < end; col++) {
                sparse.values[n] = a[col];
                sparse.places[n] = (unsigned short)(col * SPARSE_WIDTH);
                n += a[col] != 0;
            }
        }
    *start = n;
}

/* sums[n] = (first ? 0 : sums[n]) + sum of values[i] * panel[places[i] + n] */
INLINE void NAME(add_compressed)(int first, long nonzeros, const float *values,
                                 const unsigned short *places, const float *panel, float *sums) {
    vec acc[SPARSE_WIDTH / VL];
#pragma GCC unroll 8
    for (int j = 0; j < SPARSE_WIDTH / VL; j++) acc[j] = first ? (vec){0} : *(vec *)(sums + j * VL);
    for (long i = 0; i < nonzeros; i++)
#pragma GCC unroll 8
        for (int j = 0; j < SPARSE_WIDTH / VL; j++)
            acc[j] += values[i] * *(const vec *)(panel + places[i] + j * VL);
#pragma GCC unroll 8
    for (int j = 0; j < SPARSE_WIDTH / VL; j++) *(vec *)(sums + j * VL) = acc[j];
}

/* Returns an epilogue for the results from a given row and column on. */
static epilogue NAME(part_of)(const epilogue *to, long row, long col) {
    epilogue part = *to;
    part.out += col + (to->out_rows ? 0 : row * to->out_row);
    part.other += to->other ? col + (to->other_rows ? 0 : row * to->other_row) : 0;
    part.out_rows += to->out_rows ? row : 0;
    part.other_rows += to->other_rows ? row : 0;
    return part;
}

/* Computes the same as product, for an `a` with contiguous rows and many zeros. If a panel of `b` isn't
   finite, zero times it isn't zero, so product computes this panel. */
static void NAME(sparse_product)(long rows, long cols, long inner, const float *a, long a_row,
                                 const float *b, long b_row, int transposed, const epilogue *to) {
    long blocks = (inner + BLOCK_ROWS - 1) / BLOCK_ROWS;
    for (long first = 0; first < rows; first += BATCH_ROWS) {
        long tall = rows - first < BATCH_ROWS ? rows - first : BATCH_ROWS;
        NAME(compress)(tall, inner, a + first * a_row, a_row);
        for (long col = 0; col < cols; col += SPARSE_WIDTH) {
            int wide = cols - col < SPARSE_WIDTH ? (int)(cols - col) : SPARSE_WIDTH;
            const float *part = b + (transposed ? col * b_row : col);
            if (!(transposed ? NAME(transpose_panel) : NAME(copy_panel))(part, b_row, inner, wide,
                                                                         SPARSE_WIDTH, panel_room)) {
                epilogue of_part = NAME(part_of)(to, first, col);
                NAME(product)(tall, wide, inner, a + first * a_row, a_row, 1, part, b_row, transposed,
                              &of_part);
                continue;
            }
            for (long block = 0; block < blocks; block++) /* this part of the panel stays in the cache */
                for (long row = 0; row < tall; row++) {
                    const long *start = sparse.starts + row * blocks + block;
                    float *sums = sparse.sums + row * SPARSE_WIDTH;
                    NAME(add_compressed)(block == 0, start[1] - start[0], sparse.values + start[0],
                                         sparse.places + start[0], panel_room, sums);
                    if (block == blocks - 1) NAME(apply_epilogue)(to, sums, first + row, 1, col, wide);
                }
        }
    }
}

/* Returns 1 if sparse_product is faster than product, for an `a` with contiguous rows. */
static int NAME(is_sparse)(long rows, long cols, long inner, const float *a, long a_row) {
    if (rows < MR || inner < 2 * VL || inner > BATCH_ROWS || cols < SPARSE_WIDTH) return 0;
    long zeros = 0, counted = 0;
    for (long row = 0; row < rows; row += 4, counted += inner) { /* a guess needs only some rows */
        ints found = {0};
        long k = 0;
        for (; k + VL <= inner; k += VL) found -= *(const unaligned *)(a + row * a_row + k) == 0;
        for (int i = 0; i < VL; i++) zeros += found[i];
        for (; k < inner; k++) zeros += a[row * a_row + k] == 0;
    }
    long sparse_cols = (cols + SPARSE_WIDTH - 1) / SPARSE_WIDTH * SPARSE_WIDTH;
    long wide = (cols + WIDTH - 1) / WIDTH * WIDTH;
    const double cost = VL == 16 ? 1.76 : 1.45; /* measured: Emerald Rapids; EPYC of the third generation */
    return (counted - zeros) * cost * sparse_cols < counted * wide;
}

/* Copies the transpose of a matrix. */
static void NAME(transpose)(long rows, long cols, const float *from, float *to) {
    NAME(transpose_panel)(from, cols, cols, (int)rows, (int)rows, to);
}

/* Computes the same as product with `transposed`, for contiguous rows and few columns: sums along
   vectors, without panels. */
static void NAME(dots)(long rows, long cols, long inner, const float *a, const float *b,
                       const epilogue *to) {
    float sums[WIDTH] __attribute__((aligned(64)));
    for (long row = 0; row < rows; row++) {
        for (long n = 0; n < cols; n++) {
            vec acc[16 / VL] = {{0}};
            for (long k = 0; k < inner; k += 16)
                for (int j = 0; j < 16 / VL; j++) {
                    long left = inner - k - j * VL;
                    if (left <= 0) break;
                    acc[j] += NAME(load)(a + row * inner + k + j * VL, left) *
                              NAME(load)(b + n * inner + k + j * VL, left);
                }
#if VL == 16
            __m512d v = (__m512d)acc[0];
            sums[n] = sum_8((__m256)_mm512_castpd512_pd256(v) + (__m256)_mm512_extractf64x4_pd(v, 1));
#else
            sums[n] = sum_8((__m256)(acc[0] + acc[1]));
#endif
        }
        NAME(apply_epilogue)(to, sums, row, 1, 0, (int)cols);
    }
}

/* sums[n] += sum over k of g[k * cols + n]. Four vectors take turns, as an addition takes four cycles. */
static void NAME(add_rows)(long rows, long cols, const float *g, float *sums) {
    long n = 0;
    for (; n + 4 * VL <= cols; n += 4 * VL) {
        vec v[4];
        for (int j = 0; j < 4; j++) v[j] = *(const unaligned *)(sums + n + j * VL);
        for (long k = 0; k < rows; k++)
            for (int j = 0; j < 4; j++) v[j] += *(const unaligned *)(g + k * cols + n + j * VL);
        for (int j = 0; j < 4; j++) *(unaligned *)(sums + n + j * VL) = v[j];
    }
    for (; n < cols; n += VL) {
        vec v = NAME(load)(sums + n, cols - n);
        for (long k = 0; k < rows; k++) v += NAME(load)(g + k * cols + n, cols - n);
        NAME(store)(sums + n, v, cols - n);
    }
}

/* Computes the gradient of an activation's input from `grad`, that of its output y. The derivative of
   tanh from its input, which has no rounding error near +-1, was tried in TD3's policy: it learned no
   better (data/benchmarks/exact_derivative.csv beside parity.csv). */
static void NAME(activation_grad)(long n, int activation, const float *y, const float *grad,
                                  float *out) {
    for (long i = 0; i < n; i += VL) {
        int left = n - i < VL ? (int)(n - i) : VL;
        vec v = NAME(load)(grad + i, left), x = NAME(load)(y + i, left);
        if (activation == RELU) v = NAME(zero_where)(x <= 0, v);
        if (activation == TANH) v *= 1 - x * x;
        NAME(store)(out + i, v, left);
    }
}

/* Returns 1 if all numbers are finite: only a finite number times zero is zero. */
static int NAME(all_finite)(long n, const float *x) {
    vec sums[4] = {{0}};
    long i = 0;
    for (; i + 4 * VL <= n; i += 4 * VL)
        for (int j = 0; j < 4; j++) sums[j] += 0 * *(const unaligned *)(x + i + j * VL);
    for (; i < n; i += VL) sums[0] += 0 * NAME(load)(x + i, n - i);
    return NAME(all_zero)(4 * VL, (const float *)sums);
}

/* One of two divisions is replaced by three fused multiply-adds, with the same result (P. W. Markstein,
   IBM J. Res. Dev. 34, 111, 1990). On Emerald Rapids, a step takes 28% less time. */
static void NAME(adam)(long n, float *p, const float *g, float *m, float *v, double lr, double beta1,
                       double beta2, double eps, long step) {
    const float new_m = (float)(1 - beta1), old_v = (float)beta2, new_v = (float)(1 - beta2);
    const float rate = (float)(lr / (1 - pow(beta1, step))), least = (float)eps;
    const float scale = (float)sqrt(1 - pow(beta2, step)), inverse = 1 / scale;
    for (long i = 0; i < n; i += VL) {
        long left = n - i;
        vec grad = NAME(load)(g + i, left), mean = NAME(load)(m + i, left);
        vec square = NAME(load)(v + i, left), param = NAME(load)(p + i, left);
        mean = NAME(fma)(NAME(all)(new_m), grad - mean, mean);
        square = NAME(fma)(NAME(all)(old_v), square, new_v * grad * grad);
        vec root = NAME(sqrt)(square), near = root * inverse; /* nearly root / scale */
        vec rest = NAME(fma)(near, NAME(all)(-scale), root);  /* NaN if the root is infinite */
        vec exact = NAME(fma)(rest, NAME(all)(inverse), near);
        ints known = rest == rest;
        vec quotient = (vec)((known & (ints)exact) | (~known & (ints)near));
        NAME(store)(m + i, mean, left);
        NAME(store)(v + i, square, left);
        NAME(store)(p + i, param - rate * mean / (quotient + least), left);
    }
}

#undef vec
#undef unaligned
#undef ints
#undef WIDTH
#undef SPARSE_WIDTH
#undef BLOCK_ROWS
#undef INLINE
