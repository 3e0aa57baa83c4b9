// Which kernel sets this machine can run, and which one is in use.
#pragma once
#include <string>
#include <vector>

#include "kernels.h"

namespace phial {

std::vector<std::string> cpu_features();             // the features the kernel sets ask for
std::vector<const Kernels*> usable_kernels();        // slowest first
const Kernels& current_kernels();                    // PHIAL_KERNELS, else the fastest usable set
void use_kernels(const std::string& name);           // throws std::invalid_argument naming the usable sets

}  // namespace phial
