// Loading: which tensors a model has, their shapes, and how they are packed. The step itself is in step.cpp.
#include "step.h"

#include <cstring>
#include <stdexcept>

namespace phial {
namespace {

[[noreturn]] void fail(const std::string& message) { throw std::invalid_argument(message); }

std::string dims(int rows, int columns) { return std::to_string(rows) + " x " + std::to_string(columns); }

std::vector<float> floats(const std::string& name, Type type, int n, const uint8_t* data) {
    if (type != Type::F32) fail("tensor " + name + " must be F32");
    std::vector<float> v((size_t)n);
    std::memcpy(v.data(), data, sizeof(float) * v.size());
    return v;
}

}  // namespace

Model::Model(const Shape& s, int n_threads) : shape_(s), pool_(n_threads), layers_((size_t)s.n_layer) {
    if (s.head_dim > MAX_HEAD_DIM) fail("head_dim " + std::to_string(s.head_dim) + " is over 512");
    if (s.n_head_kv <= 0 || s.n_head % s.n_head_kv) fail("n_head is not a multiple of n_head_kv");
    if (s.rope_dim % 2 || s.rope_dim > s.head_dim) fail("rope_dim must be even and at most head_dim");
}

size_t Model::bytes() const {
    size_t n = token_embd_.buffer.bytes() + output_.buffer.bytes();
    for (const Layer& l : layers_)
        for (const Matrix* m : {&l.q, &l.k, &l.v, &l.attn_output, &l.gate, &l.up, &l.down}) n += m->buffer.bytes();
    return n;
}

void Model::fill(Matrix& m, const uint8_t* data, Form form) {
    constexpr int CHUNK = 8;
    std::atomic<int> next{0};
    pool_.run(pool_.size(), [&](int) {
        for (int t; (t = next.fetch_add(CHUNK)) < m.tiles();) {
            const int end = t + CHUNK < m.tiles() ? t + CHUNK : m.tiles();
            const size_t at = m.bytes_per_tile * (size_t)t;
            if (form == Form::BLOCKS) pack_tiles(m, data, t, end);
            else std::memcpy(m.buffer.data() + at, data + at, m.bytes_per_tile * (size_t)(end - t));
        }
    });
}

void Model::set_tensor(const std::string& name, int layer, Type type, int rows, int columns, const uint8_t* data,
                       size_t bytes, Form form) {
    const Shape& s = shape_;
    const BlockSize block = block_size(type);
    const int count = name == "ffn_up" && rows == 2 * s.n_ff ? 2 : 1;  // phi3: gate rows, then up rows
    const bool packed = form != Form::BLOCKS;
    const bool whole = rows > 0 && columns > 0 && columns % block.elements == 0;
    if (!whole || bytes != (packed ? (size_t)count * packed_bytes(type, rows / count, columns)
                                   : (size_t)rows * (size_t)(columns / block.elements) * (size_t)block.bytes))
        fail("tensor " + name + ": " + std::to_string(bytes) + " bytes are not " + dims(rows, columns) + " of its type");
    if (packed && (uintptr_t)data % 64) fail("tensor " + name + ": packed tiles must lie on cache lines");
    if (layer < -1 || layer >= s.n_layer) fail("tensor " + name + ": no layer " + std::to_string(layer));

    const auto expect = [&](int want_rows, int want_columns) {
        if (rows != want_rows || columns != want_columns)
            fail("tensor " + name + " is " + dims(rows, columns) + ", expected " + dims(want_rows, want_columns));
    };
    const auto load = [&](Matrix& m, int n, const uint8_t* from) {
        const bool in_place = form == Form::TILES_IN_PLACE;
        m = in_place ? view_matrix(type, n, columns, from) : make_matrix(type, n, columns, &arena_);
        if (!in_place) fill(m, from, form);
    };
    const auto matrix = [&](Matrix& m, int want_rows, int want_columns) {
        expect(want_rows, want_columns);
        load(m, rows, data);
    };
    const auto vector = [&](std::vector<float>& v, int n) {
        expect(1, n);
        v = floats(name, type, n, data);
    };
    if (layer == -1) {
        if (name == "token_embd") return matrix(token_embd_, s.n_vocab, s.n_embd);
        if (name == "output") return matrix(output_, s.n_vocab, s.n_embd);
        if (name == "output_norm") return vector(output_norm_, s.n_embd);
        fail("unknown tensor " + name);
    }
    Layer& l = layers_[(size_t)layer];
    const int q_rows = s.n_head * s.head_dim, kv_rows = s.n_head_kv * s.head_dim;
    const auto bias = [&](int at, int n) {
        expect(1, n);
        l.qkv_bias.resize((size_t)s.qkv_rows());
        const std::vector<float> v = floats(name, type, n, data);
        std::copy(v.begin(), v.end(), l.qkv_bias.begin() + at);
    };
    if (name == "attn_norm") return vector(l.attn_norm, s.n_embd);
    if (name == "ffn_norm") return vector(l.ffn_norm, s.n_embd);
    if (name == "attn_qkv") return matrix(l.q, s.qkv_rows(), s.n_embd);
    if (name == "attn_q") return matrix(l.q, q_rows, s.n_embd);
    if (name == "attn_k") return matrix(l.k, kv_rows, s.n_embd);
    if (name == "attn_v") return matrix(l.v, kv_rows, s.n_embd);
    if (name == "attn_qkv.bias") return bias(0, s.qkv_rows());
    if (name == "attn_q.bias") return bias(0, q_rows);
    if (name == "attn_k.bias") return bias(q_rows, kv_rows);
    if (name == "attn_v.bias") return bias(q_rows + kv_rows, kv_rows);
    if (name == "attn_output") return matrix(l.attn_output, s.n_embd, q_rows);
    if (name == "ffn_gate") return matrix(l.gate, s.n_ff, s.n_embd);
    if (name == "ffn_down") return matrix(l.down, s.n_embd, s.n_ff);
    if (name == "ffn_up" && rows == s.n_ff) return matrix(l.up, s.n_ff, s.n_embd);
    if (name == "ffn_up") {
        expect(2 * s.n_ff, s.n_embd);
        load(l.gate, s.n_ff, data);
        return load(l.up, s.n_ff, data + bytes / 2);
    }
    fail("unknown tensor " + name);
}

void Model::set_rope(bool long_set, std::vector<float> inv_freq, float attn_factor) {
    if ((int)inv_freq.size() != shape_.rope_dim / 2)
        fail(std::to_string(inv_freq.size()) + " RoPE frequencies for " + std::to_string(shape_.rope_dim) + " dimensions");
    rope_[long_set] = {std::move(inv_freq), attn_factor};
}

void Model::finish() {
    const auto need = [](bool there, const char* name, int layer) {
        if (!there) fail("missing tensor " + std::string(name) + (layer < 0 ? "" : " of layer " + std::to_string(layer)));
    };
    need((bool)token_embd_, "token_embd", -1);
    need(!output_norm_.empty(), "output_norm", -1);
    if (rope_[0].inv_freq.empty()) fail("no RoPE frequencies were set");
    for (int i = 0; i < shape_.n_layer; i++) {
        const Layer& l = layers_[(size_t)i];
        need(!l.attn_norm.empty(), "attn_norm", i);
        need(!l.ffn_norm.empty(), "ffn_norm", i);
        need((bool)l.q, "attn_qkv", i);
        need(l.q.rows == shape_.qkv_rows() || (l.k && l.v), "attn_k or attn_v", i);
        need((bool)l.attn_output, "attn_output", i);
        need((bool)l.gate && (bool)l.up, "ffn_up", i);
        need((bool)l.down, "ffn_down", i);
    }
    finished_ = true;
}

void Model::collect(bool on) {
    const std::lock_guard<std::mutex> between_steps(mutex_);
    squares_.clear();
    if (!on) return;
    const Shape& s = shape_;
    for (int i = 0; i < s.n_layer; i++)
        for (int columns : {s.n_embd, s.n_head * s.head_dim, s.n_embd, s.n_ff}) squares_.emplace_back((size_t)columns);
}

const std::vector<double>& Model::squares(int layer, Input input) const {
    if (squares_.empty()) fail("no squares are being collected");
    return squares_.at((size_t)layer * INPUTS + (size_t)input);
}

int Model::result_rows(const Batch& b) const {
    if (b.want == Want::NOTHING) return 0;
    return (int)(b.want == Want::LAST ? b.lengths.size() : b.tokens.size());
}

}  // namespace phial
