#include "lora.h"

#include <algorithm>
#include <stdexcept>

#include "step.h"

namespace phial {
namespace {

constexpr int OWN_TOKENS = 2;    // up to so many each thread computes A x for itself, which is cheaper than a barrier
constexpr int MOST_MATRICES = 3;  // in one product: Q, K and V

[[noreturn]] void fail(const std::string& message) { throw std::invalid_argument(message); }

Matrix packed(int rows, int columns, const float* values) {
    Matrix m = make_matrix(Type::F32, rows, columns);
    pack_tiles(m, (const uint8_t*)values, 0, m.tiles());
    return m;
}

int rank_of(const LowRank& d) { return d.a.rows; }
int rows_of(const LoraUse& u) { return u.end - u.begin; }
int parts_of(const LoraUse& u) { return (rows_of(u) + GEMV_TOKENS - 1) / GEMV_TOKENS; }

// scale * A x of up to GEMV_TOKENS rows: part `part` of a term.
void inner_part(const Kernels& k, const LoraTerm& term, int part, const Activations& x) {
    const LoraUse& use = *term.use;
    const Matrix& a = term.delta->a;
    const int at = GEMV_TOKENS * part, n = std::min(GEMV_TOKENS, rows_of(use) - at);
    float sum[GEMV_TOKENS * TILE_ROWS];
    for (int tile = 0; tile < a.tiles(); tile++) {
        k.gemv(a.type, a.tile(tile), x, use.begin + at, n, sum);
        for (int t = 0; t < n; t++)
            for (int r = TILE_ROWS * tile; r < std::min(a.rows, TILE_ROWS * (tile + 1)); r++)
                term.inner[(size_t)(at + t) * a.rows + r] = use.scale * sum[TILE_ROWS * t + r % TILE_ROWS];
    }
}

}  // namespace

int Model::add_adapter() {
    const std::lock_guard<std::mutex> no_step_runs(mutex_);
    adapters_.emplace_back();
    return n_adapters() - 1;
}

void Model::set_adapter(int adapter, const std::string& name, int layer, int rank, int rows, int columns, const float* a,
                        const float* b) {
    if (adapter < 0 || adapter >= n_adapters()) fail("no adapter " + std::to_string(adapter));
    if (layer < -1 || layer >= shape_.n_layer) fail("adapter of " + name + ": no layer " + std::to_string(layer));
    const auto add = [&](const Matrix& m, int first, int n) {
        if (!m || m.rows != n || m.columns != columns) fail("the adapter does not fit " + name);
        LowRank delta{packed(rank, columns, a), packed(n, rank, b + (size_t)first * rank)};
        const std::lock_guard<std::mutex> no_step_runs(mutex_);
        adapters_[(size_t)adapter][&m] = std::move(delta);
    };
    if (layer == -1) {
        if (name != "output") fail("no adapter can change " + name);
        return add(output_ ? output_ : token_embd_, 0, rows);
    }
    const Layer& l = layers_[(size_t)layer];
    const std::pair<const char*, const Matrix*> matrices[] = {
        {"attn_qkv", &l.q}, {"attn_q", &l.q},     {"attn_k", &l.k}, {"attn_v", &l.v}, {"attn_output", &l.attn_output},
        {"ffn_gate", &l.gate}, {"ffn_down", &l.down}, {"ffn_up", &l.up}};
    for (const auto& [known, matrix] : matrices) {
        if (name != known) continue;
        if (matrix != &l.up || rows == l.up.rows) return add(*matrix, 0, rows);
        add(l.gate, 0, l.gate.rows);  // phi3: gate rows, then up rows
        return add(l.up, l.gate.rows, rows - l.gate.rows);
    }
    fail("no adapter can change " + name);
}

void Step::plan_lora() {
    if (batch_.adapters.empty()) return;
    std::vector<int> first(batch_.lengths.size() + 1);
    for (size_t s = 0; s < batch_.lengths.size(); s++) first[s + 1] = first[s] + batch_.lengths[s];
    size_t floats = 0;
    for (const AdapterChoice& c : batch_.adapters) {
        const Adapter& adapter = m_.adapters_[(size_t)c.adapter];
        const size_t s = (size_t)c.sequence;
        lora_.push_back({&adapter, first[s], first[s + 1], c.scale});
        lora_last_.push_back({&adapter, c.sequence, c.sequence + 1, c.scale});
        int widest = 0;
        for (const auto& [target, delta] : adapter) widest = std::max(widest, rank_of(delta));
        floats += (size_t)batch_.lengths[s] * MOST_MATRICES * (size_t)widest;
    }
    if (mem_.lora.size() < floats) mem_.lora.resize(floats);
    for (Worker& w : mem_.workers) {
        w.lora.terms.reserve(MOST_MATRICES * lora_.size());
        if (tokens_ <= OWN_TOKENS && w.lora.inner.size() < floats) w.lora.inner.resize(floats);
    }
}

void Step::lora_inputs(Worker& w, const Job* jobs, int n_jobs, const Activations& a, int tokens) {
    w.lora.terms.clear();
    if (lora_.empty()) return;
    const bool own = tokens_ <= OWN_TOKENS, last = batch_.want == Want::LAST && jobs->out == out_;
    float* inner = own ? w.lora.inner.data() : mem_.lora.data();
    int items = 0;
    for (const LoraUse& use : last ? lora_last_ : lora_)
        for (int j = 0; j < n_jobs; j++)
            for (const Matrix* m : {jobs[j].a, jobs[j].b}) {
                const auto found = m ? use.adapter->find(m) : use.adapter->end();
                if (found == use.adapter->end()) continue;
                w.lora.terms.push_back({m, &found->second, &use, inner});
                inner += (size_t)rows_of(use) * (size_t)rank_of(found->second);
                items += parts_of(use);
            }
    if (own) {
        for (const LoraTerm& term : w.lora.terms) inner_part(k_, term, 0, a);
    } else if (items) {
        for (int i, end; claim(w, items, 1, i, end);) {
            const LoraTerm* term = w.lora.terms.data();
            for (; i >= parts_of(*term->use); term++) i -= parts_of(*term->use);
            inner_part(k_, *term, i, a);
        }
        next_phase(w);
    }
}

void Step::add_terms(const Worker& w, const Matrix& m, int tile, int t0, int n, float* out, int stride) const {
    float sum[GEMV_TOKENS * TILE_ROWS];
    for (const LoraTerm& term : w.lora.terms) {
        if (term.target != &m) continue;
        const Matrix& b = term.delta->b;
        const Activations inner = {term.inner, nullptr, nullptr, nullptr, nullptr, b.columns};
        const int end = std::min(t0 + n, term.use->end);
        for (int t = std::max(t0, term.use->begin); t < end; t += GEMV_TOKENS) {
            const int count = std::min(GEMV_TOKENS, end - t);
            k_.gemv(b.type, b.tile(tile), inner, t - term.use->begin, count, sum);
            for (int i = 0; i < count; i++)
                for (int r = 0; r < TILE_ROWS; r++) out[(size_t)(t - t0 + i) * stride + r] += sum[TILE_ROWS * i + r];
        }
    }
}

}  // namespace phial
