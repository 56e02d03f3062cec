// What component code is written in on a GPU: a block of threads runs LANES rows, and WORKERS threads share each row.
//
// Numbers of a row stand in shared memory. Threads take the turns of a loop, the entries of a row, the columns of a
// product. They meet before they read what others wrote. With EMULATED, threads of the host take their place.

#ifdef EMULATED
#include "emulated.h"
#else
typedef signed char int8_t;
typedef unsigned char uint8_t;
typedef short int16_t;
typedef int int32_t;
typedef long long int64_t;
#endif

#define WORKERS (THREADS / LANES)
#define INLINE static __device__ __forceinline__

typedef float F;
typedef double D;
typedef int64_t I;
typedef int32_t B;  // truth: all bits or none

INLINE int lane() { return threadIdx.x % LANES; }
INLINE int worker() { return threadIdx.x / LANES; }

// ---- What a program is made of: memory, loops, meetings.

#define CONSTANT static __device__ const
#define LOOP INLINE void
#define PARTS Part<F> f, Part<D> d, Part<I> i, Part<B> b, const void* const* given
#define STEPS(at, first, last) \
    for (int64_t at = first + blockIdx.x * int64_t(LANES); at < last; at += gridDim.x * int64_t(LANES))
#define TURNS(c, n) for (int c = worker(); c < n; c += WORKERS)
#define ONCE if (worker() == 0)
#define MEET __syncthreads();
#define APART asm volatile("" ::: "memory");  // else what loops have in common fills registers from one to the next

// Numbers of this thread's row.
template <class V> struct Part {
    V* base;
    __device__ V& operator[](long i) const { return base[i * LANES]; }
    __device__ Part operator+(long i) const { return {base + i * LANES}; }
};
struct Memory { Part<F> f; Part<D> d; Part<I> i; Part<B> b; };

template <class V> INLINE Part<V> part(char* at) { return {(V*)at + lane()}; }
template <class V> INLINE void clear(Part<V> x, long width) { TURNS(j, width) x[j] = 0; }

// The row of this thread. Threads without a row repeat the last one, and write nothing.
struct Step {
    int64_t row, local;
    bool lanes;

    __device__ Step(int64_t at, int64_t first, int64_t last, const int64_t*) {
        lanes = at + lane() < last;
        row = lanes ? at + lane() : last - 1;
        local = row - first;
    }
};

template <class V> INLINE V all(V x) { return x; }
template <class To, class V> INLINE To as(V x) { return (To)x; }
INLINE B truth(bool x) { return -(int)x; }
template <class V> INLINE V number(B x) { return (V)-x; }
template <class V> INLINE V where(B c, V a, V b) { return c ? a : b; }

// The sum over threads of a row of what each of them has.
template <class V> INLINE void keep(Part<V> to, long place, V x) {
    for (int step = LANES; step < 32; step *= 2) x += __shfl_xor_sync(0xffffffffu, x, step);
#if THREADS > 32
    __shared__ V parts[THREADS / 32][LANES];
    if (threadIdx.x % 32 < LANES) parts[threadIdx.x / 32][lane()] = x;
    __syncthreads();
    if (worker() == 0) {
        x = 0;
        for (int w = 0; w < THREADS / 32; ++w) x += parts[w][lane()];
    }
    __syncthreads();
#endif
    ONCE to[place] = x;
}

// ---- Functions of one number; the others are CUDA's own.

template <class V> INLINE V sign(V x) { return (x > 0) - (x < 0); }
template <class V> INLINE V sigmoid(V x) { return 1 / (1 + exp(-x)); }
template <class V> INLINE V maximum(V x, V y) { return x > y || x != x ? x : y; }
template <class V> INLINE V minimum(V x, V y) { return x < y || x != x ? x : y; }

// ---- Rows of global memory.

template <class E> INLINE E number_in(E x) { return x; }
INLINE B number_in(bool x) { return truth(x); }

template <class V, class E> INLINE void read(const E* base, long width, int64_t row, long first, long count, Part<V> to) {
    const E* from = base + row * width + first;
    TURNS(j, count) to[j] = (V)number_in(from[j]);
}

// The rows that lanes point at; negative numbers count from `extent`.
template <class V, class E>
INLINE void gather(const E* base, long width, I pointer, int64_t extent, long first, long count, Part<V> to) {
    read(base, width, pointer < 0 ? pointer + extent : pointer, first, count, to);
}

template <class V, class E>
INLINE void write(Part<V> from, const int* at, long width, E* base, int64_t row, bool is_there) {
    if (is_there) {
        TURNS(j, width) base[row * width + j] = (E)from[at[j]];
    }
}

template <class V, class E>
INLINE void add(Part<V> from, const int* at, long width, E* base, int64_t* numbers, I pointer, const Step& here) {
    if (numbers) {
        ONCE numbers[here.local] = pointer;
        write(from, at, width, base, here.local, here.lanes);
    } else if (here.lanes) {
        TURNS(j, width) atomicAdd(base + pointer * width + j, from[at[j]]);
    }
}

// ---- Products with a matrix that is the same for all rows. Terms that are zero, as most of a one-hot are, are left out.

template <class V, int terms, int width, long row, long column>
INLINE void product(Part<V> x, const int* at, const V* w, Part<V> y) {
    TURNS(j, width) {
        V sum = 0;
        const V* weights = w + j * column;
#pragma unroll 4
        for (int k = 0; k < terms; ++k) {
            const V factor = x[at[k]];
            if (factor != 0) sum += factor * weights[k * row];
        }
        y[j] = sum;
    }
}

// ---- Functions of one number a row, in tables of polynomials: [intervals][6][functions].

template <int order, class V> INLINE V polynomial(const V* c, long functions, V t) {
    V sum = 0;
#pragma unroll
    for (int j = 5; j >= order; --j) {
        V factor = 1;
        for (int k = 0; k < order; ++k) factor *= j - k;
        sum = sum * t + factor * c[j * functions];
    }
    return sum;
}

template <int order, class V> INLINE V looked_up(const V* c, long functions, V t, double scale, bool inside) {
    V unit = 1;
    for (int k = 0; k < order; ++k) unit *= scale;
    if (order && !inside) unit = 0;
    return polynomial<order>(c, functions, t) * unit;
}

template <class V, int> struct Same { typedef Part<V> type; };
template <class V, long functions, int... order>
INLINE void lookup(
    V x, const V* table, long intervals, double low, double high, typename Same<V, order>::type... y) {
    const double scale = intervals / (high - low), place = (x - low) * scale;
    const double held = place < 0 ? 0 : place > intervals ? intervals : place;
    const long whole = held == held ? (long)held : 0, at = whole < intervals ? whole : intervals - 1;
    const V t = held - at;
    const bool inside = place >= 0 && place <= intervals;
    TURNS(j, functions)
        ((y[j] = looked_up<order>(table + at * 6 * functions + j, functions, t, scale, inside)), ...);
}

// ---- Sums over rows, in double precision.

INLINE void add_atomically(double* to, double x) { atomicAdd(to, x); }
INLINE void add_atomically(int64_t* to, int64_t x) { atomicAdd((unsigned long long*)to, (unsigned long long)x); }

template <class S, class V> INLINE void sum_up(Part<S> sum, Part<V> from, const int* at, long width, const Step& here) {
    if (here.lanes) {
        TURNS(j, width) sum[j] += (S)from[at[j]];
    }
}
template <class V> INLINE void total(Part<V> sum, long width, V* result) {
    TURNS(j, width) add_atomically(result + j, sum[j]);
}
