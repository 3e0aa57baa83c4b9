// LoRA (Hu et al., arXiv 2106.09685) at run time: y += scale * B (A x), for the sequences of a batch that ask for it.
//
// A and B are packed like any F32 weight and run through the same kernels, on the float activations. A x is computed
// before the tiles of a matrix product, B times it is added to each tile while that is still in registers or cache: so
// before SwiGLU and before a result is added to the residual stream.
#pragma once
#include <unordered_map>
#include <vector>

#include "pack.h"

namespace phial {

struct LowRank { Matrix a, b; };  // (rank, columns), (rows, rank)

using Adapter = std::unordered_map<const Matrix*, LowRank>;  // by the matrix of the model it is added to

struct AdapterChoice { int sequence, adapter; float scale; };  // sequence: its index in the batch

// An adapter that the rows [begin, end) of the activations use.
struct LoraUse { const Adapter* adapter; int begin, end; float scale; };

// The same for one matrix of the product at hand. inner: (end - begin, rank) floats, scale * A x.
struct LoraTerm { const Matrix* target; const LowRank* delta; const LoraUse* use; float* inner; };

// What a thread keeps: the terms of its present product, and their inner floats where it computes them for itself.
struct LoraBuffers {
    std::vector<LoraTerm> terms;
    std::vector<float> inner;
};

}  // namespace phial
