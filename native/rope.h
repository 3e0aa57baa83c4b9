// Rotary positions: how the pairs of a head turn, in a forward step and in cached keys.
#pragma once
#include "kernels.h"

namespace phial {

// Rotates the first 2 * half dimensions of a head by angles given as cos and sin (half): pairs (i, i + half), or
// (2i, 2i + 1) where interleaved.
inline void rotate(const Kernels& kernels, float* head, const float* cos, const float* sin, int half, bool interleaved) {
    if (!interleaved) return kernels.rotate_half(head, cos, sin, half);
    for (int i = 0; i < half; i++) {
        const float a = head[2 * i], b = head[2 * i + 1];
        head[2 * i] = a * cos[i] - b * sin[i];
        head[2 * i + 1] = b * cos[i] + a * sin[i];
    }
}

}  // namespace phial
