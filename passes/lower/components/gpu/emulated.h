// A block of GPU threads as coroutines of one thread of the host, each run until all of a block meet.
//
// They run in ascending or descending order. What depends on the order, as it must not, differs.

#include <ucontext.h>

#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <vector>

#define __device__
#define __global__
#define __shared__ static
#define __forceinline__ inline
#define __grid_constant__
#define __launch_bounds__(...)

using std::abs, std::acos, std::asin, std::atan, std::atan2, std::cos, std::cosh, std::erf, std::exp, std::expm1;
using std::floor, std::log, std::log1p, std::pow, std::sin, std::sinh, std::sqrt, std::tan, std::tanh;

struct Index { int x; };
static Index threadIdx, blockIdx, gridDim;
static bool is_done[THREADS];
static ucontext_t host, threads[THREADS];
static char exchanged[THREADS][8];
alignas(128) static char memory[SHARED];

static void __syncthreads() {
    const int me = threadIdx.x;
    swapcontext(&threads[me], &host);
    threadIdx.x = me;
}
template <class V> static V __shfl_xor_sync(unsigned, V x, int step) {
    memcpy(exchanged[threadIdx.x], &x, sizeof x);
    __syncthreads();
    memcpy(&x, exchanged[threadIdx.x ^ step], sizeof x);
    __syncthreads();
    return x;
}
template <class V> static void atomicAdd(V* to, V x) { *to += x; }

static void (*kernel)();
static void run_thread() {
    kernel();
    is_done[threadIdx.x] = true;
}

// Run blocks one after the other. Returns false if a thread ended before others did that still wanted to meet.
static bool launch_blocks(void (*run)(), int blocks, bool descending) {
    static std::vector<char> stacks(THREADS * STACK);
    kernel = run;
    gridDim.x = blocks;
    for (blockIdx.x = 0; blockIdx.x < blocks; ++blockIdx.x) {
        memset(memory, 0xff, sizeof memory);  // what was never written is not a number
        for (int t = 0; t < THREADS; ++t) {
            is_done[t] = false;
            getcontext(&threads[t]);
            threads[t].uc_stack.ss_sp = &stacks[t * STACK];
            threads[t].uc_stack.ss_size = STACK;
            threads[t].uc_link = &host;
            makecontext(&threads[t], run_thread, 0);
        }
        for (int ended = 0; ended < THREADS;) {
            ended = 0;
            for (int k = 0; k < THREADS; ++k) {
                const int t = descending ? THREADS - 1 - k : k;
                if (is_done[t]) return false;
                threadIdx.x = t;
                swapcontext(&host, &threads[t]);
                ended += is_done[t];
            }
            if (ended && ended < THREADS) return false;
        }
    }
    return true;
}
