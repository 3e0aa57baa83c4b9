// Floats to ggml blocks whose scales are searched for: tiles of 16 rows, shared out to threads.
#pragma once
#include "kernels.h"

namespace phial {

struct WeightedError { double error = 0, power = 0; };  // sums of w (x - decoded)^2 and of w x^2

// x (rows, columns) in a float type, with weights (columns) of its squared errors -> out, the tensor's blocks. Where x is
// not finite or a scale does not fit float16, d or m of the block is not finite. Throws std::invalid_argument for types
// without blocks and columns that do not fill them.
WeightedError quantize(Type type, Type source, const uint8_t* x, int64_t rows, int64_t columns, const float* weights,
                       const ScalePlan& plan, int n_threads, uint8_t* out);

}  // namespace phial
