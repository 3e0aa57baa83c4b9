// Inside a forward step: what one thread does, phase by phase, all threads meeting at barriers in between.
#pragma once
#include <atomic>
#include <chrono>
#include <initializer_list>
#include <stdexcept>

#include "cpu.h"
#include "model.h"

namespace phial {

// int8 activations and where they live. A step of one or two tokens computes them on every thread for itself, which is
// cheaper than a barrier; longer ones share the work and the buffers.
struct ActivationBuffers {
    std::vector<float> x, d, sum;
    std::vector<int8_t> q;
    std::vector<int32_t> isum16;
    void reserve(size_t tokens, size_t k);
    Activations view(const float* values, int k) const { return {values, q.data(), d.data(), sum.data(), isum16.data(), k}; }
};

enum class Mode { STORE, ADD, SWIGLU };

// out (tokens, ld) = or += a . activations; SWIGLU: (b . x) * silu(a . x).
struct Job {
    const Matrix* a;
    const Matrix* b;
    float* out;
    int ld;
    Mode mode;
};

struct Worker {
    int index = 0, phase = 0, own_phase = -1;  // own_phase: where the thread took its own run
    ActivationBuffers local;
    Buffer panel_memory[2];
    Panel panel[2];
    std::unique_ptr<Attention> attention;
    LoraBuffers lora;
    void reserve_panels(size_t k);
};

// What a step works in; kept by the model between steps and only ever grown.
struct StepMemory {
    std::vector<float> x, qkv, heads, hidden, cos, sin, last, partial_values;
    std::vector<Partial> partials;
    ActivationBuffers shared;
    std::vector<float> lora;
    std::vector<Worker> workers;
    std::unique_ptr<std::atomic<int>[]> counters;  // one a phase: the next unclaimed item
    StepMemory(const Shape& shape, int n_threads);
    void reserve(const Shape& shape, size_t tokens, size_t sequences);
};

class Step {
  public:
    Step(Model& model, const Cache& cache, const Batch& batch, int n_threads, float* out);
    void run(const std::function<bool()>& stop);

  private:
    struct AttentionItem { int sequence, head, first_row, rows, chunks, partial_at; };

    void work(Worker& w, const std::function<bool()>& stop);
    void layer(Worker& w, int index);
    bool stopped(Worker& w, const std::function<bool()>& stop);

    // Claims the next `chunk` of n items of the current phase; false when none is left.
    bool claim(Worker& w, int n, int chunk, int& begin, int& end);
    bool claim_part(Worker& w, int n, int& begin, int& end);
    void next_phase(Worker& w, bool barrier = true);
    int share(int n) const { return n / (threads_ * 8) > 1 ? n / (threads_ * 8) : 1; }

    void embed(Worker& w);
    void collect(const Worker& w, int layer, Input input, const Activations& a);
    Activations activate(Worker& w, const float* x, int tokens, int k, const float* norm, bool quantise);
    void matmul(Worker& w, const Job* jobs, int n_jobs, const Activations& a, int tokens);
    void matmul_few(Worker& w, const Job* jobs, int n_jobs, const Activations& a, int tokens);
    void tile_gemv(const Worker& w, const Job& job, int tile, const Activations& a, int tokens);
    void tile_pair(Worker& w, const Job& job, int pair, const Activations& a, int begin, int end);
    void finish_rows(const Job& job, int row, int rows, int token, const float* values) const;
    void rope_and_store(Worker& w, int layer);
    void attention(Worker& w, int layer);
    void attention_item(const AttentionItem& item, QueryTile& tile);
    void attention_split(Worker& w, int layer);
    void result(Worker& w);
    void plan_attention();

    // lora.cpp. plan: before the step. inputs: before a matmul's tiles, scale * A x of every adapter its matrices have.
    // add: B times that, to 16 finished rows of `m` for n tokens, `stride` floats apart, before any activation.
    void plan_lora();
    void lora_inputs(Worker& w, const Job* jobs, int n_jobs, const Activations& a, int tokens);
    void add_lora(const Worker& w, const Matrix& m, int tile, int t0, int n, float* out, int stride) const {
        if (!w.lora.terms.empty()) add_terms(w, m, tile, t0, n, out, stride);
    }
    void add_terms(const Worker& w, const Matrix& m, int tile, int t0, int n, float* out, int stride) const;

    Model& m_;
    StepMemory& mem_;
    const Shape& s_;
    const Kernels& k_;
    const Cache& cache_;
    const Batch& batch_;
    float* out_;
    int tokens_, threads_, kv_group_;
    std::vector<int> sequence_, position_;  // of each token
    std::vector<AttentionItem> items_;
    std::vector<std::pair<int, int>> split_;  // (item, chunk) where few items share many keys
    std::vector<LoraUse> lora_, lora_last_;   // by the step's tokens; by its sequences' last tokens
    std::atomic<bool> stop_{false};
    std::chrono::steady_clock::time_point asked_;
};

}  // namespace phial
