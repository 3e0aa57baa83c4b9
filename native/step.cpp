#include "step.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "rope.h"

namespace phial {
namespace {

constexpr int PHASES_PER_LAYER = 20, LOCAL_TOKENS = 2, MIN_TOKEN_BLOCK = 48;
constexpr auto ASK_EVERY = std::chrono::milliseconds(50);

template <class T> void grow(std::vector<T>& v, size_t n) {
    if (v.size() < n) v.resize(n);
}

size_t widest(const Shape& s) {
    return (size_t)std::max({s.n_embd, s.n_head * s.head_dim, s.n_ff, padded_head_dim(s.head_dim)});
}

const float* data_or_null(const std::vector<float>& v) { return v.empty() ? nullptr : v.data(); }

bool quantised(std::initializer_list<const Matrix*> matrices) {
    for (const Matrix* m : matrices)
        if (*m && !is_float(m->type)) return true;
    return false;
}

}  // namespace

void ActivationBuffers::reserve(size_t tokens, size_t k) {
    grow(x, tokens * k);
    grow(q, tokens * k);
    grow(d, tokens * k / 32 + 1);
    grow(sum, tokens * k / 32 + 1);
    grow(isum16, tokens * k / 16 + 1);
}

// Codes or float values share the first run; scales and minimums (at most one per 16 inputs) follow.
void Worker::reserve_panels(size_t k) {
    const size_t values = k * TILE_ROWS * sizeof(float), scales = (k / 16 + 1) * TILE_ROWS * sizeof(float);
    for (int i = 0; i < 2; i++) {
        panel_memory[i] = Buffer(values + 2 * scales);
        uint8_t* p = panel_memory[i].data();
        panel[i].codes = p;
        panel[i].values = (float*)p;
        panel[i].scale = (float*)(p + values);
        panel[i].min = (float*)(p + values + scales);
    }
}

StepMemory::StepMemory(const Shape& s, int n_threads)
    : workers((size_t)n_threads), counters(new std::atomic<int>[(size_t)PHASES_PER_LAYER * (s.n_layer + 1)]) {
    for (int i = 0; i < n_threads; i++) {
        Worker& w = workers[(size_t)i];
        w.index = i;
        w.local.reserve(LOCAL_TOKENS, widest(s));
        w.reserve_panels(widest(s));
        w.attention = std::make_unique<Attention>(s.head_dim);
    }
}

void StepMemory::reserve(const Shape& s, size_t tokens, size_t sequences) {
    grow(x, tokens * s.n_embd);
    grow(qkv, tokens * s.qkv_rows());
    grow(heads, tokens * s.n_head * s.head_dim);
    grow(hidden, tokens * s.n_ff);
    grow(cos, tokens * s.rope_dim / 2);
    grow(sin, tokens * s.rope_dim / 2);
    grow(last, sequences * s.n_embd);
    if (tokens > LOCAL_TOKENS) shared.reserve(tokens, widest(s));
    for (int i = 0; i < PHASES_PER_LAYER * (s.n_layer + 1); i++) counters[(size_t)i] = 0;
    for (Worker& w : workers) w.phase = 0, w.own_phase = -1;
}

Step::Step(Model& model, const Cache& cache, const Batch& batch, int n_threads, float* out)
    : m_(model), mem_(*model.memory_), s_(model.shape_), k_(current_kernels()), cache_(cache), batch_(batch), out_(out),
      tokens_((int)batch.tokens.size()), threads_(std::min(n_threads, model.pool_.size())),
      kv_group_(s_.n_head / s_.n_head_kv) {
    for (size_t s = 0; s < batch.lengths.size(); s++)
        for (int i = 0; i < batch.lengths[s]; i++) {
            sequence_.push_back((int)s);
            position_.push_back(batch.n_past[s] + i);
        }
    mem_.reserve(s_, batch.tokens.size(), batch.lengths.size());
    plan_attention();
    plan_lora();
}

void Step::run(const std::function<bool()>& stop) {
    asked_ = std::chrono::steady_clock::now();
    m_.pool_.run(threads_, [&](int index) { work(mem_.workers[(size_t)index], stop); });
    if (stop_) throw Interrupted();
}

bool Step::claim(Worker& w, int n, int chunk, int& begin, int& end) {
    begin = mem_.counters[(size_t)w.phase].fetch_add(chunk, std::memory_order_relaxed);
    end = begin + chunk < n ? begin + chunk : n;
    return begin < n;
}

// Each thread takes a run of its own first, then all share the rest in shrinking parts: memory is read in long runs, and
// the threads finish together.
bool Step::claim_part(Worker& w, int n, int& begin, int& end) {
    const int own = 3 * n / (4 * threads_), shared = own * threads_;
    if (w.own_phase != w.phase) {
        w.own_phase = w.phase;
        begin = own * w.index;
        end = begin + own;
        if (own > 0) return true;
    }
    std::atomic<int>& next = mem_.counters[(size_t)w.phase];
    int taken = next.load(std::memory_order_relaxed), part;
    do {
        if (shared + taken >= n) return false;
        part = std::max(1, (n - shared - taken) / (2 * threads_));
    } while (!next.compare_exchange_weak(taken, taken + part, std::memory_order_relaxed));
    begin = shared + taken;
    end = begin + part;
    return true;
}

void Step::next_phase(Worker& w, bool barrier) {
    w.phase++;
    if (barrier) m_.pool_.barrier();
}

// Thread 0 asks; all threads read the answer behind the same barrier, so they leave together.
bool Step::stopped(Worker& w, const std::function<bool()>& stop) {
    if (w.index == 0) {
        const auto now = std::chrono::steady_clock::now();
        if (now - asked_ > ASK_EVERY) {
            asked_ = now;
            if (stop()) stop_ = true;
        }
    }
    m_.pool_.barrier();
    return stop_;
}

void Step::work(Worker& w, const std::function<bool()>& stop) {
    embed(w);
    next_phase(w);
    for (int i = 0; i < s_.n_layer; i++) {
        if (stopped(w, stop)) return;
        w.phase = PHASES_PER_LAYER * (i + 1);
        layer(w, i);
    }
    w.phase = 1;
    result(w);
}

void Step::layer(Worker& w, int index) {
    Layer& l = m_.layers_[(size_t)index];
    const int qkv = s_.qkv_rows(), heads = s_.n_head * s_.head_dim, kv = s_.n_head_kv * s_.head_dim;
    Activations a = activate(w, mem_.x.data(), tokens_, s_.n_embd, l.attn_norm.data(), quantised({&l.q, &l.k, &l.v}));
    collect(w, index, Input::QKV, a);
    Job jobs[3] = {{&l.q, nullptr, mem_.qkv.data(), qkv, Mode::STORE},
                   {&l.k, nullptr, mem_.qkv.data() + heads, qkv, Mode::STORE},
                   {&l.v, nullptr, mem_.qkv.data() + heads + kv, qkv, Mode::STORE}};
    matmul(w, jobs, l.k ? 3 : 1, a, tokens_);
    next_phase(w);
    rope_and_store(w, index);
    next_phase(w);
    attention(w, index);
    next_phase(w);
    a = activate(w, mem_.heads.data(), tokens_, heads, nullptr, quantised({&l.attn_output}));
    collect(w, index, Input::ATTN_OUTPUT, a);
    jobs[0] = {&l.attn_output, nullptr, mem_.x.data(), s_.n_embd, Mode::ADD};
    matmul(w, jobs, 1, a, tokens_);
    next_phase(w);
    a = activate(w, mem_.x.data(), tokens_, s_.n_embd, l.ffn_norm.data(), quantised({&l.gate, &l.up}));
    collect(w, index, Input::GATE_UP, a);
    jobs[0] = {&l.gate, &l.up, mem_.hidden.data(), s_.n_ff, Mode::SWIGLU};
    matmul(w, jobs, 1, a, tokens_);
    next_phase(w);
    a = activate(w, mem_.hidden.data(), tokens_, s_.n_ff, nullptr, quantised({&l.down}));
    collect(w, index, Input::DOWN, a);
    jobs[0] = {&l.down, nullptr, mem_.x.data(), s_.n_embd, Mode::ADD};
    matmul(w, jobs, 1, a, tokens_);
    next_phase(w, false);  // stopped() or result() meets next
}

void Step::embed(Worker& w) {
    const int half = s_.rope_dim / 2;
    for (int t, end; claim(w, tokens_, share(tokens_), t, end);)
        for (; t < end; t++) {
            const int row = batch_.tokens[(size_t)t], columns = m_.token_embd_.columns;
            k_.expand(m_.token_embd_.type, m_.token_embd_.tile(row / TILE_ROWS), columns, w.panel[0]);
            panel_row(w.panel[0], row % TILE_ROWS, columns, &mem_.x[(size_t)t * s_.n_embd]);
            const Rope& rope = m_.rope_[batch_.long_rope[(size_t)sequence_[(size_t)t]]];
            for (int i = 0; i < half; i++) {
                const float angle = (float)position_[(size_t)t] * rope.inv_freq[(size_t)i];
                mem_.cos[(size_t)t * half + i] = std::cos(angle) * rope.attn_factor;
                mem_.sin[(size_t)t * half + i] = std::sin(angle) * rope.attn_factor;
            }
        }
}

// Rows (normed with `norm` where given) as floats and, where asked, int8.
Activations Step::activate(Worker& w, const float* x, int tokens, int k, const float* norm, bool quantise) {
    const bool local = tokens <= LOCAL_TOKENS;
    ActivationBuffers& b = local ? w.local : mem_.shared;
    const auto row = [&](int t) {
        const float* source = x + (size_t)t * k;
        if (norm) {
            k_.rms_norm(source, norm, s_.rms_norm_eps, k, &b.x[(size_t)t * k]);
            source = &b.x[(size_t)t * k];
        }
        if (quantise)
            k_.quantize(source, k, &b.q[(size_t)t * k], &b.d[(size_t)t * k / 32], &b.sum[(size_t)t * k / 32],
                        &b.isum16[(size_t)t * k / 16]);
    };
    if (local) {
        for (int t = 0; t < tokens; t++) row(t);
    } else {
        for (int t, end; claim(w, tokens, share(tokens), t, end);)
            for (; t < end; t++) row(t);
        next_phase(w);
    }
    return b.view(norm ? b.x.data() : x, k);
}

// Each thread sums its share of the columns over all tokens, so the sums are the same for any number of threads.
void Step::collect(const Worker& w, int layer, Input input, const Activations& a) {
    if (m_.squares_.empty()) return;
    std::vector<double>& sums = m_.squares_[(size_t)layer * INPUTS + (size_t)input];
    const auto edge = [&](int thread) { return (size_t)a.k * (size_t)thread / (size_t)threads_; };
    const size_t begin = edge(w.index), end = edge(w.index + 1);
    for (int t = 0; t < tokens_; t++)
        for (size_t i = begin; i < end; i++) {
            const double x = a.x[(size_t)t * a.k + i];
            sums[i] += x * x;
        }
}

void Step::matmul(Worker& w, const Job* jobs, int n_jobs, const Activations& a, int tokens) {
    lora_inputs(w, jobs, n_jobs, a, tokens);
    if (tokens <= (k_.tiles ? 2 : GEMV_TOKENS)) return matmul_few(w, jobs, n_jobs, a, tokens);
    int pairs[3] = {}, total = 0;
    for (int j = 0; j < n_jobs; j++) {
        const int n = jobs[j].a->tiles();
        total += pairs[j] = jobs[j].mode == Mode::SWIGLU ? n : (n + 1) / 2;
    }
    // Few tiles for many threads: split the tokens too.
    const int blocks = std::max(1, std::min((4 * threads_ + total - 1) / total, tokens / MIN_TOKEN_BLOCK));
    const int per_block = (tokens + blocks - 1) / blocks;
    for (int i, end; tokens <= FEW_TOKENS ? claim_part(w, total * blocks, i, end) : claim(w, total * blocks, 1, i, end);)
        for (; i < end; i++) {
            int pair = i % total, j = 0;
            while (pair >= pairs[j]) pair -= pairs[j++];
            const int begin = (i / total) * per_block;
            tile_pair(w, jobs[j], pair, a, begin, std::min(begin + per_block, tokens));
        }
}

// One token or two: memory is the limit, so each matrix is read in runs of tiles, the gate's before the up's.
void Step::matmul_few(Worker& w, const Job* jobs, int n_jobs, const Activations& a, int tokens) {
    int total = 0;
    for (int j = 0; j < n_jobs; j++) total += jobs[j].a->tiles();
    for (int i, end; claim_part(w, total, i, end);)
        for (int j = 0, first = 0; j < n_jobs; first += jobs[j++].a->tiles()) {
            const int lo = std::max(i - first, 0), hi = std::min(end - first, jobs[j].a->tiles());
            const bool gated = jobs[j].mode == Mode::SWIGLU;
            const Job gate = {jobs[j].a, nullptr, jobs[j].out, jobs[j].ld, gated ? Mode::STORE : jobs[j].mode};
            const Job up = {jobs[j].b, nullptr, jobs[j].out, jobs[j].ld, Mode::SWIGLU};
            for (int tile = lo; tile < hi; tile++) tile_gemv(w, gate, tile, a, tokens);
            for (int tile = lo; tile < hi && gated; tile++) tile_gemv(w, up, tile, a, tokens);
        }
}

// Puts one token's results for up to 32 rows, from `row` on, where they belong.
void Step::finish_rows(const Job& job, int row, int rows, int token, const float* values) const {
    float* out = job.out + (size_t)token * job.ld + row;
    const auto put = [&](int n) {
        if (job.mode == Mode::ADD)
            for (int i = 0; i < n; i++) out[i] += values[i];
        else
            for (int i = 0; i < n; i++) out[i] = values[i];
    };
    rows = std::min(rows, job.a->rows - row);
    if (rows == 2 * TILE_ROWS) put(2 * TILE_ROWS);  // lengths the compiler knows
    else if (rows == TILE_ROWS) put(TILE_ROWS);
    else put(rows);
}

// SWIGLU: the gate's results lie where the product with these, the up's, goes.
void Step::tile_gemv(const Worker& w, const Job& job, int tile, const Activations& a, int tokens) {
    float out[GEMV_TOKENS * TILE_ROWS], gate[TILE_ROWS] = {};
    k_.gemv(job.a->type, job.a->tile(tile), a, 0, tokens, out);
    add_lora(w, *job.a, tile, 0, tokens, out, TILE_ROWS);
    for (int t = 0; t < tokens; t++) {
        float* row = out + TILE_ROWS * t;
        if (job.mode == Mode::SWIGLU) {
            const int columns = std::min(TILE_ROWS, job.a->rows - tile * TILE_ROWS);
            std::memcpy(gate, job.out + (size_t)t * job.ld + (size_t)tile * TILE_ROWS, sizeof(float) * (size_t)columns);
            k_.silu_mul(gate, row, TILE_ROWS, row);
        }
        finish_rows(job, TILE_ROWS * tile, TILE_ROWS, t, row);
    }
}

void Step::tile_pair(Worker& w, const Job& job, int pair, const Activations& a, int begin, int end) {
    const bool swiglu = job.mode == Mode::SWIGLU;
    const int first = swiglu ? pair : 2 * pair, second = swiglu ? pair : first + 1;
    const bool alone = !swiglu && second >= job.a->tiles();
    const Matrix &a_matrix = *job.a, &b_matrix = swiglu ? *job.b : *job.a;
    const uint8_t *a_tile = a_matrix.tile(first), *b_tile = alone ? a_tile : b_matrix.tile(second);
    const bool packed = k_.tiles && end - begin <= FEW_TOKENS && a_matrix.type == b_matrix.type && !is_float(a_matrix.type);
    if (!packed) {
        k_.expand(a_matrix.type, a_tile, a.k, w.panel[0]);
        if (!alone) k_.expand(b_matrix.type, b_tile, a.k, w.panel[1]);
    }
    float out[16 * 2 * TILE_ROWS];
    const int steps = (end - begin + k_.panel_tokens - 1) / k_.panel_tokens;
    const int most = packed ? (end - begin + steps - 1) / steps : k_.panel_tokens;  // few tokens go in equal parts
    for (int t0 = begin; t0 < end; t0 += most) {
        const int n = std::min(most, end - t0);
        if (packed) k_.tiles(a_matrix.type, a_tile, b_tile, a, t0, n, out);
        else k_.panels(w.panel[0], w.panel[alone ? 0 : 1], a, t0, n, out);
        add_lora(w, a_matrix, first, t0, n, out, 2 * TILE_ROWS);
        if (!alone) add_lora(w, b_matrix, second, t0, n, out + TILE_ROWS, 2 * TILE_ROWS);
        for (int t = 0; t < n; t++) {
            float* row = out + 2 * TILE_ROWS * t;
            if (swiglu) k_.silu_mul(row, row + TILE_ROWS, TILE_ROWS, row);
            finish_rows(job, TILE_ROWS * first, swiglu || alone ? TILE_ROWS : 2 * TILE_ROWS, t0 + t, row);
        }
    }
}

void Step::rope_and_store(Worker& w, int layer) {
    const int hd = s_.head_dim, half = s_.rope_dim / 2, n = tokens_ * s_.n_head_kv;
    const float scale = 1.0f / std::sqrt((float)hd);
    const float* bias = data_or_null(m_.layers_[(size_t)layer].qkv_bias);
    const auto turn = [&](float* head, int t) {
        rotate(k_, head, &mem_.cos[(size_t)t * half], &mem_.sin[(size_t)t * half], half, s_.rope_interleaved);
    };
    const auto add_bias = [&](float* head, int column) {
        if (bias) for (int d = 0; d < hd; d++) head[d] += bias[column + d];
    };
    for (int i, end; claim(w, n, share(n), i, end);)
        for (; i < end; i++) {
            const int t = i / s_.n_head_kv, h = i % s_.n_head_kv;
            float* row = &mem_.qkv[(size_t)t * s_.qkv_rows()];
            for (int g = h * kv_group_; g < (h + 1) * kv_group_; g++) {
                add_bias(row + g * hd, g * hd);
                turn(row + g * hd, t);
                for (int d = 0; d < hd; d++) row[g * hd + d] *= scale;
            }
            const int k_at = (s_.n_head + h) * hd, v_at = (s_.n_head + s_.n_head_kv + h) * hd;
            add_bias(row + k_at, k_at);
            add_bias(row + v_at, v_at);
            turn(row + k_at, t);
            const int p = position_[(size_t)t];
            uint8_t* page = batch_.pages[(size_t)sequence_[(size_t)t]][(size_t)(p / PAGE_TOKENS)];
            cache_.store(k_, page, layer, h, p % PAGE_TOKENS, row + k_at, row + v_at);
        }
}

// Rows of a sequence and key-value head are its tokens times the query heads that share it. Where that makes fewer
// tiles than keep the threads busy, a tile's chunks of keys become work items of their own.
void Step::plan_attention() {
    int at = 0;
    for (size_t s = 0; s < batch_.lengths.size(); s++) {
        const int rows = batch_.lengths[s] * kv_group_;
        const int chunks = (batch_.n_past[s] + batch_.lengths[s] + CHUNK_KEYS - 1) / CHUNK_KEYS;
        for (int r = rows - 1 - (rows - 1) % QUERY_ROWS; r >= 0; r -= QUERY_ROWS)  // the longest contexts first
            for (int h = 0; h < s_.n_head_kv; h++) {
                const int n = std::min(QUERY_ROWS, rows - r);
                items_.push_back({(int)s, h, r, n, chunks, at});
                at += n * chunks;
            }
    }
    if ((int)items_.size() >= 4 * threads_) return;
    for (size_t i = 0; i < items_.size(); i++)
        for (int c = 0; c < items_[i].chunks; c++) split_.push_back({(int)i, c});
    grow(mem_.partials, (size_t)at);
    grow(mem_.partial_values, (size_t)at * cache_.padded_dim());
}

void Step::attention_item(const AttentionItem& item, QueryTile& tile) {
    int first_token = 0;
    for (int s = 0; s < item.sequence; s++) first_token += batch_.lengths[(size_t)s];
    tile.rows = item.rows;
    for (int r = 0; r < item.rows; r++) {
        const int t = first_token + (item.first_row + r) / kv_group_;
        const int head = item.head * kv_group_ + (item.first_row + r) % kv_group_;
        tile.query[r] = &mem_.qkv[(size_t)t * s_.qkv_rows() + (size_t)head * s_.head_dim];
        tile.out[r] = &mem_.heads[((size_t)t * s_.n_head + head) * s_.head_dim];
        tile.last[r] = position_[(size_t)t] + 1;
        tile.first[r] = s_.sliding_window ? std::max(0, tile.last[r] - s_.sliding_window) : 0;
    }
}

void Step::attention(Worker& w, int layer) {
    if (!split_.empty()) return attention_split(w, layer);
    QueryTile tile;
    for (int i, end; claim(w, (int)items_.size(), 1, i, end);) {
        const AttentionItem& item = items_[(size_t)i];
        attention_item(item, tile);
        w.attention->attend(k_, cache_, tile, batch_.pages[(size_t)item.sequence].data(), layer, item.head);
    }
}

void Step::attention_split(Worker& w, int layer) {
    const int dims = cache_.padded_dim();
    QueryTile tile;
    for (int i, end; claim(w, (int)split_.size(), 1, i, end);) {
        const AttentionItem& item = items_[(size_t)split_[(size_t)i].first];
        const int chunk = split_[(size_t)i].second;
        const size_t at = (size_t)item.partial_at + (size_t)chunk * item.rows;
        attention_item(item, tile);
        bool seen = false;
        for (int r = 0; r < tile.rows; r++)
            seen |= tile.first[r] < (chunk + 1) * CHUNK_KEYS && tile.last[r] > chunk * CHUNK_KEYS;
        if (seen)
            w.attention->chunk(k_, cache_, tile, batch_.pages[(size_t)item.sequence].data(), layer, item.head, chunk,
                               &mem_.partials[at], &mem_.partial_values[at * dims]);
        else
            for (int r = 0; r < tile.rows; r++) mem_.partials[at + (size_t)r] = {0, 0};
    }
    next_phase(w);
    std::vector<float>& total = w.local.x;  // at least one head long
    for (int i, end; claim(w, (int)items_.size(), 1, i, end);) {
        const AttentionItem& item = items_[(size_t)i];
        attention_item(item, tile);
        for (int r = 0; r < tile.rows; r++) {
            Partial state = {-std::numeric_limits<float>::infinity(), 0};
            std::memset(total.data(), 0, sizeof(float) * (size_t)dims);
            for (int c = 0; c < item.chunks; c++) {
                const size_t at = (size_t)item.partial_at + (size_t)c * item.rows + (size_t)r;
                merge(k_, state, total.data(), mem_.partials[at], &mem_.partial_values[at * dims], dims);
            }
            for (int d = 0; d < s_.head_dim; d++) tile.out[r][d] = total[(size_t)d] / state.sum;
        }
    }
}

void Step::result(Worker& w) {
    m_.pool_.barrier();
    if (batch_.want == Want::NOTHING) return;
    const bool last = batch_.want == Want::LAST;
    const int rows = m_.result_rows(batch_);
    if (last) {
        if (w.index == 0) {
            int t = -1;
            for (int s = 0; s < rows; s++) {
                t += batch_.lengths[(size_t)s];
                std::memcpy(&mem_.last[(size_t)s * s_.n_embd], &mem_.x[(size_t)t * s_.n_embd], sizeof(float) * (size_t)s_.n_embd);
            }
        }
        m_.pool_.barrier();
    }
    const float* x = last ? mem_.last.data() : mem_.x.data();
    if (batch_.want == Want::HIDDEN) {
        for (int t, end; claim(w, rows, share(rows), t, end);)
            for (; t < end; t++)
                k_.rms_norm(x + (size_t)t * s_.n_embd, m_.output_norm_.data(), s_.rms_norm_eps, s_.n_embd,
                            out_ + (size_t)t * s_.n_embd);
        return;
    }
    const Matrix& head = m_.output_ ? m_.output_ : m_.token_embd_;
    const Activations a = activate(w, x, rows, s_.n_embd, m_.output_norm_.data(), quantised({&head}));
    const Job job = {&head, nullptr, out_, s_.n_vocab, Mode::STORE};
    matmul(w, &job, 1, a, rows);
}

Model::~Model() = default;

void Model::forward(const Cache& cache, const Batch& batch, int n_threads, const std::function<bool()>& stop,
                    float* out) {
    if (!finished_) throw std::logic_error("forward before finish");
    const std::lock_guard<std::mutex> one_step_at_a_time(mutex_);
    if (!memory_) memory_ = std::make_unique<StepMemory>(shape_, pool_.size());
    Step(*this, cache, batch, n_threads, out).run(stop);
}

}  // namespace phial
