// The same on a GPU, on a stream of a device.
#pragma once

#include <cstdint>

#include "core/tensor.h"
#include "fuzzy/fuzzy.h"

namespace tenfold::fuzzy::cuda {

// `scratch`: as many bytes on the device as these say.
int64_t scratch_bytes(const Task& task, bool backward);
int64_t product_scratch(const ProductTask& task);  // of its backward pass

void quantify(const Task& task, char* scratch, Queue queue);
void quantify_backward(const Task& task, char* scratch, Queue queue);
void segments(const SegmentTask& task, int64_t values, Queue queue);
void segments_backward(const SegmentTask& task, int64_t values, Queue queue);
void atom_logits(const AtomTask& task, Queue queue);
void atom_logits_backward(const AtomTask& task, Queue queue);
void logmatmul(const ProductTask& task, Queue queue);
void logmatmul_backward(const ProductTask& task, char* scratch, Queue queue);

}  // namespace tenfold::fuzzy::cuda
