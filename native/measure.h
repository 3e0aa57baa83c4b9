// What this machine can do and what the kernels make of it, for benchmarks: `phial bench` and bench/kernels.py.
#pragma once
#include "kernels.h"

namespace phial {

// Each takes the best of the passes that fit into `seconds`, all threads together.

double read_bandwidth(int n_threads, double seconds);  // GB/s of plain reads over 256 MB
double dot_rate(int n_threads, double seconds);        // 10^9 int8 operations a second (2 a multiply-add), in registers
// Seconds to multiply a packed matrix of this type with `tokens` rows of quantised activations, as a forward step does.
double matmul_seconds(Type type, int rows, int columns, int tokens, int n_threads, double seconds);

}  // namespace phial
