// What component code is written in: vectors with one entry for each of the rows that run side by side.
//
// LANES is the number of these rows: as many as have room in a register of REGISTER bytes.

#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>

typedef float F __attribute__((vector_size(4 * LANES)));
typedef double D __attribute__((vector_size(8 * LANES)));
typedef int64_t I __attribute__((vector_size(8 * LANES)));
typedef int32_t B __attribute__((vector_size(4 * LANES)));  // truth: all bits or none

template <class V> struct entry;
template <> struct entry<F> { typedef float type; typedef B mask; };
template <> struct entry<D> { typedef double type; typedef I mask; };
template <> struct entry<I> { typedef int64_t type; typedef I mask; };
template <> struct entry<B> { typedef int32_t type; typedef B mask; };
template <class V> using entry_t = typename entry<V>::type;
template <class V> using mask_t = typename entry<V>::mask;

#define INLINE static inline __attribute__((always_inline))

// ---- What a program is made of: memory, loops, meetings. A processor runs all rows of a step in one thread.

#define CONSTANT static const
#define LOOP static __attribute__((noinline)) void
#define PARTS F* __restrict f, D* __restrict d, I* __restrict i, B* __restrict b, const void* const* given
#define STEPS(at, first, last) for (int64_t at = first; at < last; at += LANES)
#define TURNS(c, n) for (int c = 0; c < n; ++c)
#define ONCE
#define MEET
#define APART

struct Memory { F* f; D* d; I* i; B* b; };
template <class V> INLINE V* part(char* at) { return (V*)at; }
template <class V> INLINE void clear(V* x, long width) { for (long j = 0; j < width; ++j) x[j] = V{}; }
template <class V> INLINE void keep(V* to, long place, V x) { to[place] = x; }

// The rows of one step: their numbers, and the places of their results among those of a stretch.
struct Step {
    int lanes;
    int64_t row[LANES], local[LANES];
    B valid;

    Step(int64_t at, int64_t first, int64_t last, const int64_t* order) {
        lanes = last - at < LANES ? last - at : LANES;
        for (int l = 0; l < LANES; ++l) {
            local[l] = at + (l < lanes ? l : lanes - 1);
            row[l] = order ? order[local[l]] : local[l];
            local[l] -= first;
            valid[l] = l < lanes ? -1 : 0;
        }
    }
};

template <class V> INLINE V all(entry_t<V> x) { return V{} + x; }
template <class To, class V> INLINE To as(V x) { return __builtin_convertvector(x, To); }
template <class M> INLINE B truth(M mask) { return __builtin_convertvector(mask, B); }
template <class V> INLINE V number(B x) { return __builtin_convertvector(-x, V); }
template <class V> INLINE V where(B c, V a, V b) { return __builtin_convertvector(c, mask_t<V>) ? a : b; }

// ---- Functions of one number: those of Sleef, which is part of torch, as many at a time as a register holds.
#if REGISTER == 64
#define FLOATS(f) Sleef_##f##f16_u10
#define DOUBLES(f) Sleef_##f##d8_u10
#elif REGISTER == 32
#define FLOATS(f) Sleef_##f##f8_u10
#define DOUBLES(f) Sleef_##f##d4_u10
#elif defined(__aarch64__)
#define FLOATS(f) Sleef_##f##f4_u10
#define DOUBLES(f) Sleef_##f##d2_u10
#endif

template <class V, class R> constexpr int parts = (sizeof(V) + sizeof(R) - 1) / sizeof(R);
template <class V, class R, R (*function)(R)> INLINE V each(V x) {
    R part[parts<V, R>] = {};
    memcpy(part, &x, sizeof x);
    for (auto& p : part) p = function(p);
    memcpy(&x, part, sizeof x);
    return x;
}
template <class V, class R, R (*function)(R, R)> INLINE V each(V x, V y) {
    R part[parts<V, R>] = {}, other[parts<V, R>] = {};
    memcpy(part, &x, sizeof x);
    memcpy(other, &y, sizeof y);
    for (int i = 0; i < parts<V, R>; ++i) part[i] = function(part[i], other[i]);
    memcpy(&x, part, sizeof x);
    return x;
}
#ifdef FLOATS
typedef float FR __attribute__((vector_size(REGISTER)));
typedef double DR __attribute__((vector_size(REGISTER)));
#define FUNCTION(name, sleef)                                              \
    extern "C" FR FLOATS(sleef)(FR);                                       \
    extern "C" DR DOUBLES(sleef)(DR);                                      \
    INLINE F name(F x) { return each<F, FR, FLOATS(sleef)>(x); }           \
    INLINE D name(D x) { return each<D, DR, DOUBLES(sleef)>(x); }
#define FUNCTION2(name, sleef)                                             \
    extern "C" FR FLOATS(sleef)(FR, FR);                                   \
    extern "C" DR DOUBLES(sleef)(DR, DR);                                  \
    INLINE F name(F x, F y) { return each<F, FR, FLOATS(sleef)>(x, y); }   \
    INLINE D name(D x, D y) { return each<D, DR, DOUBLES(sleef)>(x, y); }
#else
#define FUNCTION(name, sleef)                                              \
    INLINE F name(F x) { return each<F, float, ::sleef##f>(x); }           \
    INLINE D name(D x) { return each<D, double, ::sleef>(x); }
#define FUNCTION2(name, sleef)                                             \
    INLINE F name(F x, F y) { return each<F, float, ::sleef##f>(x, y); }   \
    INLINE D name(D x, D y) { return each<D, double, ::sleef>(x, y); }
#endif
FUNCTION(exp, exp) FUNCTION(log, log) FUNCTION(sin, sin) FUNCTION(cos, cos) FUNCTION(tan, tan) FUNCTION(tanh, tanh)
FUNCTION(erf, erf) FUNCTION(acos, acos) FUNCTION(asin, asin) FUNCTION(atan, atan) FUNCTION(log1p, log1p)
FUNCTION(expm1, expm1) FUNCTION(sinh, sinh) FUNCTION(cosh, cosh)
FUNCTION2(atan2, atan2) FUNCTION2(pow, pow)

template <class V> INLINE V sqrt(V x) {
    for (int i = 0; i < LANES; ++i) x[i] = std::sqrt(x[i]);
    return x;
}
template <class V> INLINE V floor(V x) {
    for (int i = 0; i < LANES; ++i) x[i] = std::floor(x[i]);
    return x;
}
template <class V> INLINE V abs(V x) { return x > 0 ? x : 0 - x; }  // -0 becomes 0
template <class V> INLINE V sign(V x) { return number<V>(truth(x > 0)) - number<V>(truth(x < 0)); }
template <class V> INLINE V sigmoid(V x) { return 1 / (1 + exp(-x)); }
template <class V> INLINE V maximum(V x, V y) { return (x > y) | (x != x) ? x : y; }
template <class V> INLINE V minimum(V x, V y) { return (x < y) | (x != x) ? x : y; }

// ---- Rows of memory become vectors, and back.

// Exchange rows and columns of a square of LANES vectors.
template <class V, int step> INLINE void exchange(V* t) {
    mask_t<V> low, high;
    for (int j = 0; j < LANES; ++j) {
        low[j] = j & step ? LANES + j - step : j;
        high[j] = j & step ? LANES + j : j + step;
    }
#pragma GCC unroll 16
    for (int i = 0; i < LANES; ++i)
        if (!(i & step)) {
            V a = t[i], b = t[i + step];
            t[i] = __builtin_shuffle(a, b, low);
            t[i + step] = __builtin_shuffle(a, b, high);
        }
}
template <class V> INLINE void transpose(V* t) {
    exchange<V, 1>(t);
    if constexpr (LANES > 2) exchange<V, 2>(t);
    if constexpr (LANES > 4) exchange<V, 4>(t);
    if constexpr (LANES > 8) exchange<V, 8>(t);
}

// The entries first .. first + count of one row a lane, as vectors.
template <class V, class E> static void read(const E* base, long width, const int64_t* rows, long first, long count, V* to) {
    const E* row[LANES];
    for (int l = 0; l < LANES; ++l) row[l] = base + rows[l] * width + first;
    long f = 0;
    if constexpr (__is_same(E, entry_t<V>))
        for (; f + LANES <= count; f += LANES) {
            V t[LANES];
            for (int l = 0; l < LANES; ++l) memcpy(&t[l], row[l] + f, sizeof(V));
            transpose(t);
            for (int l = 0; l < LANES; ++l) to[f + l] = t[l];
        }
    for (; f < count; ++f)
        for (int l = 0; l < LANES; ++l) to[f][l] = __is_same(E, bool) ? -int(row[l][f]) : row[l][f];
}

// The same of the rows that lanes point at; negative numbers count from `extent`.
template <class V, class E>
INLINE void gather(const E* base, long width, I pointer, int64_t extent, long first, long count, V* to) {
    int64_t rows[LANES];
    for (int l = 0; l < LANES; ++l) rows[l] = pointer[l] + (pointer[l] < 0) * extent;
    read(base, width, rows, first, count, to);
}

// Vectors at `at` of `from` become entries of rows of memory.
template <class V, class E>
static void write(const V* from, const int* at, long width, E* base, const int64_t* rows, int lanes) {
    long f = 0;
    if constexpr (__is_same(E, entry_t<V>))
        for (; f + LANES <= width; f += LANES) {
            V t[LANES];
            for (int l = 0; l < LANES; ++l) t[l] = from[at[f + l]];
            transpose(t);
            for (int l = 0; l < lanes; ++l) memcpy(base + rows[l] * width + f, &t[l], sizeof(V));
        }
    for (; f < width; ++f)
        for (int l = 0; l < lanes; ++l) base[rows[l] * width + f] = from[at[f]][l];
}

// Vectors are added to rows of memory. Lanes that follow each other often have the same row, so it is written once.
template <class V, class E>
static void add(const V* from, const int* at, long width, E* base, const int64_t* rows, int lanes) {
    long f = 0;
    for (; f + LANES <= width; f += LANES) {
        V t[LANES];
        for (int l = 0; l < LANES; ++l) t[l] = from[at[f + l]];
        transpose(t);
        for (int l = 0; l < lanes;) {
            E* row = base + rows[l] * width + f;
            V sum;
            memcpy(&sum, row, sizeof sum);
            int64_t same = rows[l];
            for (; l < lanes && rows[l] == same; ++l) sum += t[l];
            memcpy(row, &sum, sizeof sum);
        }
    }
    for (; f < width; ++f)
        for (int l = 0; l < lanes; ++l) base[rows[l] * width + f] += from[at[f]][l];
}

// The same; or where there is memory for the numbers of these rows, both are kept one row after the other.
template <class V, class E>
INLINE void add(const V* from, const int* at, long width, E* base, int64_t* numbers, I pointer, const Step& here) {
    int64_t rows[LANES];
    for (int l = 0; l < LANES; ++l) rows[l] = pointer[l];
    if (!numbers) return add(from, at, width, base, rows, here.lanes);
    for (int l = 0; l < here.lanes; ++l) numbers[here.local[l]] = rows[l];
    write(from, at, width, base, here.local, here.lanes);
}

// Rows of values, added to rows of a table.
template <class V> INLINE void add_rows(
    const entry_t<V>* values, const int64_t* numbers, int64_t count, int64_t width, entry_t<V>* to) {
    for (int64_t i = 0; i < count; ++i) {
        const entry_t<V>* from = values + i * width;
        entry_t<V>* row = to + numbers[i] * width;
        int64_t f = 0;
        for (; f + LANES <= width; f += LANES) {
            V part, sum;
            memcpy(&part, from + f, sizeof part);
            memcpy(&sum, row + f, sizeof sum);
            sum += part;
            memcpy(row + f, &sum, sizeof sum);
        }
        for (; f < width; ++f) row[f] += from[f];
    }
}
extern "C" void add_floats(const float* v, const int64_t* n, int64_t c, int64_t w, float* to) { add_rows<F>(v, n, c, w, to); }
extern "C" void add_doubles(const double* v, const int64_t* n, int64_t c, int64_t w, double* to) {
    add_rows<D>(v, n, c, w, to);
}

// ---- Products with a matrix that is the same for all rows.

template <class V> INLINE bool any(V x) {
    mask_t<V> differs = x != 0;
    int64_t part[sizeof differs / 8], found = 0;
    memcpy(part, &differs, sizeof differs);
    for (auto p : part) found |= p;
    return found;
}

template <class V, long row, long column, int columns>
INLINE void columns_of(const V* x, const int* at, const int* term, int terms, const entry_t<V>* w, V* y) {
    V sum[columns] = {};
    for (int i = 0; i < terms; ++i) {
        V factor = x[at[i]];
        const entry_t<V>* weights = w + term[i] * row;
        asm("" : "+r"(weights));  // else each column gets a pointer of its own, more than there are registers
#pragma GCC unroll 32
        for (int j = 0; j < columns; ++j) sum[j] += factor * weights[j * column];
    }
#pragma GCC unroll 32
    for (int j = 0; j < columns; ++j) y[j] = sum[j];
}

// y = x w, with `row` and `column` the strides of w. Terms in which all lanes are zero, as most of a one-hot are, are
// left out.
template <class V, int terms, int width, long row, long column>
static __attribute__((noinline)) void product(const V* x, const int* at, const entry_t<V>* w, V* y) {
    constexpr int columns = REGISTER == 64 ? (sizeof(V) > REGISTER ? 8 : 16) : (sizeof(V) > REGISTER ? 4 : 8);
    int kept[terms], term[terms], count = 0;
    for (int k = 0; k < terms; ++k) {
        kept[count] = at[k];
        term[count] = k;
        count += any(x[at[k]]);
    }
    int n = 0;
    for (; n + columns <= width; n += columns)
        columns_of<V, row, column, columns>(x, kept, term, count, w + n * column, y + n);
    if constexpr (width % columns != 0)
        columns_of<V, row, column, width % columns>(x, kept, term, count, w + n * column, y + n);
}

// ---- Sums over rows of outer products.

template <class V> struct __attribute__((may_alias)) Entry { entry_t<V> value; };
template <class V> INLINE const entry_t<V>* entries(const V* x) { return &((const Entry<V>*)x)->value; }

// sum[i][j] += x[i] g[j] of some i and j, added up over terms and lanes in registers.
template <class V, int m, int n>
INLINE void corner(
    const V* x, const int* at, const int* kept, int terms, const V* rows, long vectors, V* sum, int lanes) {
    V part[m][n];
#pragma GCC unroll 8
    for (int i = 0; i < m; ++i)
#pragma GCC unroll 4
        for (int j = 0; j < n; ++j) part[i][j] = sum[kept[i] * vectors + j];
    for (int t = 0; t < terms; ++t) {
        const entry_t<V>* left[m];
        for (int i = 0; i < m; ++i) left[i] = entries(x + at[kept[i] * terms + t]);
        const V* right = rows + t * LANES * vectors;
        for (int l = 0; l < lanes; ++l, right += vectors)
#pragma GCC unroll 8
            for (int i = 0; i < m; ++i) {
                const V factor = all<V>(left[i][l]);
#pragma GCC unroll 4
                for (int j = 0; j < n; ++j) part[i][j] += factor * right[j];
            }
    }
#pragma GCC unroll 8
    for (int i = 0; i < m; ++i)
#pragma GCC unroll 4
        for (int j = 0; j < n; ++j) sum[kept[i] * vectors + j] = part[i][j];
}

// sum += x g, with x [m, terms] and g [terms, n] of each lane, whose rows `rows` has room for. What is zero in all lanes on
// the left is left out.
template <class V>
static __attribute__((noinline)) void add_outer(
    const V* x, const int* left, int m, const int* right, int n, int terms, V* rows, V* sum, int lanes) {
    constexpr int registers = sizeof(V) / REGISTER, high = REGISTER == 64 ? 6 : registers > 1 ? 2 : 4;
    constexpr int wide = REGISTER == 64 ? (registers > 1 ? 2 : 4) : registers > 1 ? 1 : 2;
    const long vectors = (n + LANES - 1) / LANES;
    for (int t = 0; t < terms; ++t)
        for (long j = 0; j < vectors; ++j) {
            V square[LANES];
            for (int l = 0; l < LANES; ++l) square[l] = j * LANES + l < n ? x[right[t * n + j * LANES + l]] : V{};
            transpose(square);
            for (int l = 0; l < LANES; ++l) rows[(t * LANES + l) * vectors + j] = square[l];
        }
    int kept[m], count = 0;
    for (int i = 0; i < m; ++i) {
        bool some = false;
        for (int t = 0; t < terms && !some; ++t) some = any(x[left[i * terms + t]]);
        kept[count] = i;
        count += some;
    }
    for (long j = 0; j < vectors;) {
        const bool is_wide = j + wide <= vectors;
        int i = 0;
        for (; i + high <= count; i += high)
            if (is_wide) corner<V, high, wide>(x, left, kept + i, terms, rows + j, vectors, sum + j, lanes);
            else corner<V, high, 1>(x, left, kept + i, terms, rows + j, vectors, sum + j, lanes);
        for (; i < count; ++i)
            if (is_wide) corner<V, 1, wide>(x, left, kept + i, terms, rows + j, vectors, sum + j, lanes);
            else corner<V, 1, 1>(x, left, kept + i, terms, rows + j, vectors, sum + j, lanes);
        j += is_wide ? wide : 1;
    }
}

// ---- Functions of one number a row, in tables of polynomials: [intervals][6][functions].

// The polynomials of the interval that each lane's number is in, and its place there.
template <class V> struct Interval {
    typedef entry_t<V> E;
    const E* row[LANES];
    E t[LANES];
    double scale;
    bool inside[LANES];

    Interval(V x, const E* table, long intervals, long functions, double low, double high) {
        scale = intervals / (high - low);
        for (int l = 0; l < LANES; ++l) {
            const double place = (x[l] - low) * scale;
            const double held = place < 0 ? 0 : place > intervals ? intervals : place;
            const long whole = held == held ? (long)held : 0, at = whole < intervals ? whole : intervals - 1;
            row[l] = table + at * 6 * functions;
            t[l] = held - at;
            inside[l] = place >= 0 && place <= intervals;
        }
    }
};

// Values of polynomials in t, whose coefficients are `functions` numbers apart, or of their derivatives.
template <int order, class W, class E> INLINE W polynomial(const E* c, long functions, E t) {
    W sum{};
#pragma GCC unroll 6
    for (int j = 5; j >= order; --j) {
        W part;
        memcpy(&part, c + j * functions, sizeof part);
        E factor = 1;
        for (int k = 0; k < order; ++k) factor *= j - k;
        sum = sum * t + factor * part;
    }
    return sum;
}

template <int order, class W, class V> INLINE W looked_up(const Interval<V>& at, int l, long f, long functions) {
    entry_t<V> unit = 1;
    for (int k = 0; k < order; ++k) unit *= at.scale;
    if (order && !at.inside[l]) unit = 0;
    return polynomial<order, W, entry_t<V>>(at.row[l] + f, functions, at.t[l]) * unit;
}

// Derivatives of each order: functions side by side, one row after the other, since a row's numbers are one stretch of
// memory. Then columns become rows. What has several orders reads the table once.
template <class V, long functions, int... order>
static __attribute__((noinline)) void lookup(
    V x, const entry_t<V>* table, long intervals, double low, double high, std::conditional_t<(order, true), V*, void>... y) {
    const Interval<V> at(x, table, intervals, functions, low, high);
    long f = 0;
    for (; f + LANES <= functions; f += LANES) {
        V part[sizeof...(order)][LANES];
        for (int l = 0; l < LANES; ++l) {
            int k = 0;
            ((part[k++][l] = looked_up<order, V>(at, l, f, functions)), ...);
        }
        int k = 0;
        ((transpose(part[k]), memcpy(y + f, part[k++], sizeof part[0])), ...);
    }
    if constexpr (functions % LANES != 0)
        for (; f < functions; ++f)
            for (int l = 0; l < LANES; ++l) ((y[f][l] = looked_up<order, entry_t<V>>(at, l, f, functions)), ...);
}

// ---- Sums over rows.

template <class S, class V> INLINE void sum_up(S* sum, const V* from, const int* at, long width, const Step& here) {
    for (long j = 0; j < width; ++j) sum[j] += as<S>(where(here.valid, from[at[j]], V{}));
}
template <class V> INLINE entry_t<V> total(V x) {
    entry_t<V> sum = 0;
    for (int l = 0; l < LANES; ++l) sum += x[l];
    return sum;
}
template <class V, class E> INLINE void total(const V* sum, long width, E* result) {
    for (long j = 0; j < width; ++j) result[j] = total(sum[j]);
}
