// One forward step of a llama-like transformer (phi3, llama, qwen2) over packed weights and a paged cache.
// Knows nothing of files, text or Python. The same step in numpy: src/phial/engine/reference.py.
#pragma once
#include <atomic>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "attention.h"
#include "cache.h"
#include "lora.h"
#include "pack.h"
#include "threads.h"

namespace phial {

struct Shape {
    int n_vocab, n_embd, n_layer, n_head, n_head_kv, head_dim, n_ff;
    float rms_norm_eps;
    int rope_dim;             // leading dimensions of a head that rotate
    bool rope_interleaved;    // pairs (2i, 2i + 1) instead of (i, i + rope_dim / 2)
    int sliding_window;       // keys a query sees, itself included; 0 = all
    int qkv_rows() const { return (n_head + 2 * n_head_kv) * head_dim; }
};

struct Layer {
    std::vector<float> attn_norm, ffn_norm, qkv_bias;  // qkv_bias empty or qkv_rows
    Matrix q, k, v, attn_output, gate, up, down;       // q alone holds all of qkv where the file fuses them
};

struct Rope {
    std::vector<float> inv_freq;  // (rope_dim / 2)
    float attn_factor = 1;
};

// Weights as they are handed over: to be packed, on all threads; packed, to be copied; or used where they are, which
// must then outlive the model.
enum class Form { BLOCKS, TILES, TILES_IN_PLACE };

enum class Want { LAST, ALL, HIDDEN, NOTHING };

// What the matrices of a layer multiply: the inputs whose squares are summed for an importance matrix.
enum class Input { QKV, ATTN_OUTPUT, GATE_UP, DOWN };
constexpr int INPUTS = 4;

// The tokens of one step: `lengths[s]` tokens of sequence s follow its `n_past[s]` cached ones.
struct Batch {
    std::vector<int32_t> tokens, lengths, n_past;
    std::vector<uint8_t> long_rope;
    std::vector<std::vector<uint8_t*>> pages;  // per sequence, enough for n_past + length
    Want want;
    std::vector<AdapterChoice> adapters;
};

struct StepMemory;

class Interrupted : public std::exception {};

class Model {
  public:
    Model(const Shape& shape, int n_threads);
    ~Model();

    const Shape& shape() const { return shape_; }
    int threads() const { return pool_.size(); }
    size_t bytes() const;  // memory of the packed weights

    // `data` holds ggml blocks of (rows, columns) or, on a cache line, the tiles of each matrix that the tensor holds
    // (ffn_up may hold gate and up). Throws std::invalid_argument where name, shape or size do not fit the model.
    void set_tensor(const std::string& name, int layer, Type type, int rows, int columns, const uint8_t* data,
                    size_t bytes, Form form = Form::BLOCKS);
    void set_rope(bool long_set, std::vector<float> inv_freq, float attn_factor);
    void finish();  // throws std::invalid_argument naming the first tensor that is missing

    // A new, empty adapter; its number goes into Batch::adapters. set_adapter adds a (rank, columns) and b (rows, rank)
    // for a tensor of set_tensor's names. Throws std::invalid_argument where they do not fit it.
    int add_adapter();
    void set_adapter(int adapter, const std::string& name, int layer, int rank, int rows, int columns, const float* a,
                     const float* b);
    int n_adapters() const { return (int)adapters_.size(); }

    // Rows of the result: sequences (LAST), tokens (ALL, HIDDEN) or none. `stop` is asked a few times a second by the
    // calling thread; when it says true the step ends with Interrupted.
    int result_rows(const Batch& batch) const;
    void forward(const Cache& cache, const Batch& batch, int n_threads, const std::function<bool()>& stop, float* out);

    void fill(Matrix& m, const uint8_t* data, Form form);  // all tiles, on all threads

    // From now on forward() adds the square of every input of every product to sums, which begin at zero; or no more.
    void collect(bool on);
    const std::vector<double>& squares(int layer, Input input) const;  // (columns); throws where nothing is collected

  private:
    friend class Step;
    Shape shape_;
    ThreadPool pool_;
    Arena arena_;
    Matrix token_embd_, output_;
    std::vector<float> output_norm_;
    std::vector<Layer> layers_;
    std::vector<Adapter> adapters_;
    Rope rope_[2];  // short (or only), long
    bool finished_ = false;
    std::unique_ptr<StepMemory> memory_;
    std::vector<std::vector<double>> squares_;  // (layer, Input), empty unless collecting
    std::mutex mutex_;  // callers of forward() take turns
};

}  // namespace phial
