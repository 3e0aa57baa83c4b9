// The only file that knows Python exists: checks every argument at the boundary, then calls the core without the GIL.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <cstring>

#include "cpu.h"
#include "measure.h"
#include "model.h"
#include "quantize.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace phial {
namespace {

template <class T, size_t N = 1> using Array = nb::ndarray<const T, nb::ndim<N>, nb::c_contig, nb::device::cpu>;

nb::object owned_array(float* data, size_t rows, size_t columns) {
    nb::capsule owner(data, [](void* p) noexcept { delete[] (float*)p; });
    return nb::cast(nb::ndarray<nb::numpy, float>(data, {rows, columns}, owner));
}

[[noreturn]] void fail(const std::string& message) { throw std::invalid_argument(message); }

// True when Python has a signal to deliver (Ctrl-C); the Python exception is then set.
bool python_wants_to_stop() {
    nb::gil_scoped_acquire gil;
    return PyErr_CheckSignals() != 0;
}

template <class T> std::vector<T> to_vector(const Array<T>& a) { return {a.data(), a.data() + a.size()}; }

using Chosen = std::tuple<int, int, float>;  // sequence of the batch, adapter, scale

Batch make_batch(const Model& m, const Cache& cache, const Array<int32_t>& tokens, const Array<int32_t>& lengths,
                 const Array<int32_t>& n_past, const Array<uint8_t>& long_rope, const Array<int32_t, 2>& pages, int want,
                 const std::vector<Chosen>& adapters) {
    Batch b{to_vector(tokens), to_vector(lengths), to_vector(n_past), to_vector(long_rope), {}, (Want)want, {}};
    const size_t sequences = b.lengths.size();
    if (!cache.made_for(m.shape().n_layer, m.shape().n_head_kv, m.shape().head_dim)) fail("the cache is another model's");
    if (want < 0 || want > 3) fail("want is 0 (last), 1 (all), 2 (hidden) or 3 (nothing)");
    if (b.tokens.empty()) fail("no tokens");
    if (b.n_past.size() != sequences || b.long_rope.size() != sequences || pages.shape(0) != sequences)
        fail("lengths, n_past, long and pages must have one entry per sequence");
    int64_t total = 0;
    for (size_t s = 0; s < sequences; s++) {
        const int64_t length = b.lengths[s], past = b.n_past[s];
        if (length <= 0 || past < 0) fail("a sequence needs at least one token and n_past of at least 0");
        if (b.long_rope[s] > 1) fail("long is 0 or 1");
        total += length;
        const int64_t needed = (past + length + PAGE_TOKENS - 1) / PAGE_TOKENS;
        if (needed > (int64_t)pages.shape(1))
            fail(std::to_string(past + length) + " tokens need " + std::to_string(needed) + " pages");
        b.pages.emplace_back();
        for (int64_t p = 0; p < needed; p++) b.pages.back().push_back(cache.page(pages(s, (size_t)p)));
    }
    if (total != (int64_t)b.tokens.size()) fail("lengths do not add up to the number of tokens");
    for (const auto& [sequence, adapter, scale] : adapters) {
        if (sequence < 0 || sequence >= (int)sequences) fail("an adapter for sequence " + std::to_string(sequence));
        if (adapter < 0 || adapter >= m.n_adapters()) fail("no adapter " + std::to_string(adapter));
        b.adapters.push_back({sequence, adapter, scale});
    }
    for (int32_t t : b.tokens)
        if (t < 0 || t >= m.shape().n_vocab)
            fail("token " + std::to_string(t) + " is outside the vocabulary of " + std::to_string(m.shape().n_vocab));
    return b;
}

nb::object forward(Model& m, const Cache& cache, const Array<int32_t>& tokens, const Array<int32_t>& lengths,
                   const Array<int32_t>& n_past, const Array<uint8_t>& long_rope, const Array<int32_t, 2>& pages,
                   int want, int n_threads, const std::vector<Chosen>& adapters) {
    const Batch batch = make_batch(m, cache, tokens, lengths, n_past, long_rope, pages, want, adapters);
    if (n_threads < 1) fail("n_threads must be at least 1");
    const size_t rows = (size_t)m.result_rows(batch);
    const size_t columns = (size_t)(batch.want == Want::HIDDEN ? m.shape().n_embd : m.shape().n_vocab);
    std::unique_ptr<float[]> out(new float[std::max<size_t>(rows * columns, 1)]);
    try {
        nb::gil_scoped_release release;
        m.forward(cache, batch, n_threads, python_wants_to_stop, out.get());
    } catch (const Interrupted&) {
        throw nb::python_error();
    }
    return owned_array(out.release(), rows, columns);
}

nb::object squares(const Model& m, int layer, int input) {
    if (layer < 0 || layer >= m.shape().n_layer || input < 0 || input >= INPUTS) fail("no such layer or input");
    const std::vector<double>& sums = m.squares(layer, (Input)input);
    std::unique_ptr<double[]> out(new double[sums.size()]);
    std::copy(sums.begin(), sums.end(), out.get());
    double* data = out.release();
    nb::capsule owner(data, [](void* p) noexcept { delete[] (double*)p; });
    return nb::cast(nb::ndarray<nb::numpy, double>(data, {sums.size()}, owner));
}

Type checked_type(int type) {
    block_size((Type)type);  // throws for an unknown one
    return (Type)type;
}

// The tiles of a matrix as map_tensor takes them.
nb::object packed(int type, int rows, int columns, const Array<uint8_t>& data) {
    const BlockSize block = block_size(checked_type(type));
    auto m = std::make_unique<Matrix>(make_matrix((Type)type, rows, columns));
    if (data.size() != (size_t)rows * (size_t)(columns / block.elements) * (size_t)block.bytes) fail("wrong data size");
    {
        nb::gil_scoped_release release;
        pack_tiles(*m, data.data(), 0, m->tiles());
    }
    uint8_t* tiles = m->buffer.data();
    const size_t bytes = m->buffer.bytes();
    nb::capsule owner(m.release(), [](void* p) noexcept { delete (Matrix*)p; });
    return nb::cast(nb::ndarray<nb::numpy, uint8_t>(tiles, {bytes}, owner));
}

// (rows, columns) floats of a packed matrix, or its product with activations x (tokens, columns): for kernel tests.
nb::object matmul(int type, int rows, int columns, const Array<uint8_t>& data, const Array<float, 2>& x, bool panels) {
    const BlockSize block = block_size(checked_type(type));
    Matrix m = make_matrix((Type)type, rows, columns);
    if (data.size() != (size_t)rows * (size_t)(columns / block.elements) * (size_t)block.bytes) fail("wrong data size");
    if ((int)x.shape(1) != columns) fail("x has the wrong number of columns");
    pack_tiles(m, data.data(), 0, m.tiles());
    const Kernels& k = current_kernels();
    const int n = (int)x.shape(0), step = panels ? k.panel_tokens : GEMV_TOKENS;
    const size_t size = (size_t)n * columns;
    std::vector<int8_t> q(size);
    std::vector<float> d(size / 32 + 1), sum(size / 32 + 1), p(size_t(columns) * TILE_ROWS * 2), buffer(64 * TILE_ROWS);
    std::vector<int32_t> isum(size / 16 + 1);
    if (!is_float(m.type)) k.quantize(x.data(), (int)size, q.data(), d.data(), sum.data(), isum.data());
    const Activations a = {x.data(), q.data(), d.data(), sum.data(), isum.data(), columns};
    float* out = new float[(size_t)n * rows];
    Panel panel{};
    panel.codes = (uint8_t*)p.data();
    panel.values = p.data();
    panel.scale = p.data() + (size_t)columns * TILE_ROWS;
    std::vector<float> low((size_t)columns + 16);
    panel.min = low.data();
    for (int t = 0; t < m.tiles(); t++) {
        if (panels) k.expand(m.type, m.tile(t), columns, panel);
        for (int t0 = 0; t0 < n; t0 += step) {
            const int tokens = std::min(step, n - t0), stride = panels ? 2 * TILE_ROWS : TILE_ROWS;
            if (panels) k.panels(panel, panel, a, t0, tokens, buffer.data());
            else k.gemv(m.type, m.tile(t), a, t0, tokens, buffer.data());
            for (int i = 0; i < tokens; i++)
                for (int r = 0; r < TILE_ROWS && t * TILE_ROWS + r < rows; r++)
                    out[(size_t)(t0 + i) * rows + t * TILE_ROWS + r] = buffer[(size_t)i * stride + r];
        }
    }
    return owned_array(out, (size_t)n, (size_t)rows);
}

using Quantized = std::tuple<nb::ndarray<nb::numpy, uint8_t, nb::ndim<1>>, double, double>;

Quantized quantize_tensor(int type, int source, const Array<uint8_t, 2>& x, const Array<float>& weights,
                          const Array<float, 2>& trials, const Array<int32_t, 2>& moves, int rounds, int n_threads) {
    const BlockSize block = block_size(checked_type(type)), value = block_size(checked_type(source));
    const size_t rows = x.shape(0), columns = weights.size();
    if (!is_float((Type)source)) fail("the source must be of a float type");
    if (x.shape(1) != columns * (size_t)value.bytes) fail("a weight per column, please");
    if (trials.shape(0) < 1 || trials.shape(1) != 2 || moves.shape(1) != 2) fail("trials and moves are pairs");
    if (n_threads < 1 || n_threads > MAX_THREADS) fail("n_threads is 1 to " + std::to_string(MAX_THREADS));
    const ScalePlan plan = {trials.data(), moves.data(), (int)trials.shape(0), (int)moves.shape(0), rounds};
    const size_t bytes = rows * (columns / (size_t)block.elements) * (size_t)block.bytes;
    std::unique_ptr<uint8_t[]> out(new uint8_t[std::max<size_t>(bytes, 1)]);
    WeightedError sums;
    {
        nb::gil_scoped_release release;
        sums = quantize((Type)type, (Type)source, x.data(), (int64_t)rows, (int64_t)columns, weights.data(), plan,
                        n_threads, out.get());
    }
    nb::capsule owner(out.get(), [](void* p) noexcept { delete[] (uint8_t*)p; });
    return {{out.release(), {bytes}, owner}, sums.error, sums.power};
}

template <class F> auto timed(int n_threads, double seconds, F&& measure) {
    if (n_threads < 1 || n_threads > MAX_THREADS || !(seconds > 0 && seconds < 60)) fail("n_threads >= 1 and 0 < seconds < 60");
    nb::gil_scoped_release release;
    return measure();
}

double time_matmul(int type, int rows, int columns, int tokens, int n_threads, double seconds) {
    const int block = block_size(checked_type(type)).elements;
    if (is_float((Type)type)) fail("only quantised types are timed");
    if (rows < 1 || columns < 32 || columns % block || tokens < 1 || tokens > 4096) fail("sizes are out of range");
    return timed(n_threads, seconds, [&] { return matmul_seconds((Type)type, rows, columns, tokens, n_threads, seconds); });
}

Cache make_cache(const Model& m, const std::string& type) {
    const Shape& s = m.shape();
    for (const auto& [name, t] : {std::pair{"f16", Type::F16}, {"bf16", Type::BF16}, {"q8_0", Type::Q8_0}})
        if (type == name) return Cache(t, s.n_layer, s.n_head_kv, s.head_dim, s.rope_interleaved);
    fail("cache type '" + type + "' is not f16, bf16 or q8_0");
}

void rotate_keys(Cache& c, int id, const Array<float, 2>& cos, const Array<float, 2>& sin) {
    const size_t half = cos.shape(1);
    if (cos.shape(0) != (size_t)PAGE_TOKENS || sin.shape(0) != (size_t)PAGE_TOKENS || sin.shape(1) != half)
        fail("cos and sin need a row for each of the " + std::to_string(PAGE_TOKENS) + " slots of a page");
    if (2 * half > (size_t)c.head_dim()) fail("cos and sin rotate more dimensions than a head has");
    uint8_t* page = c.page(id);
    nb::gil_scoped_release release;
    c.rotate_keys(current_kernels(), page, cos.data(), sin.data(), (int)half);
}

void write_page(Cache& c, int id, const nb::bytes& data) {
    if (data.size() != c.page_bytes()) fail("a page has " + std::to_string(c.page_bytes()) + " bytes");
    std::memcpy(c.page(id), data.c_str(), data.size());
}

void init_model(Model* self, int n_vocab, int n_embd, int n_layer, int n_head, int n_head_kv, int head_dim, int n_ff,
                float rms_norm_eps, int rope_dim, bool rope_interleaved, int sliding_window, int n_threads) {
    for (int v : {n_vocab, n_embd, n_layer, n_head, n_head_kv, head_dim, n_ff, n_threads})
        if (v < 1) fail("sizes and n_threads must be at least 1");
    if (n_threads > MAX_THREADS) fail("n_threads is at most " + std::to_string(MAX_THREADS));
    const Shape shape = {n_vocab, n_embd,       n_layer,  n_head,           n_head_kv,     head_dim,
                         n_ff,    rms_norm_eps, rope_dim, rope_interleaved, sliding_window};
    new (self) Model(shape, n_threads);
}

}  // namespace
}  // namespace phial

NB_MODULE(_native, m) {
    using namespace phial;
    m.doc() = "The compiled core of phial: packed weights, kernels chosen at run time, one forward step per call.";
    m.def("kernel_sets", [] {
        std::vector<std::string> names;
        for (const Kernels* k : usable_kernels()) names.push_back(k->name);
        return names;
    }, "Kernel sets this CPU can run, slowest first.");
    m.def("current_kernels", [] { return std::string(current_kernels().name); }, "The kernel set in use.");
    m.def("use_kernels", &use_kernels, "name"_a, "Switches the kernel set; ValueError names the usable ones.");
    m.def("cpu_features", &cpu_features, "Instruction set extensions of this CPU that the kernels know.");
    m.def("read_bandwidth", [](int n, double seconds) { return timed(n, seconds, [&] { return read_bandwidth(n, seconds); }); },
          "n_threads"_a, "seconds"_a, "Memory read bandwidth in GB/s.");
    m.def("dot_rate", [](int n, double seconds) { return timed(n, seconds, [&] { return dot_rate(n, seconds); }); },
          "n_threads"_a, "seconds"_a, "int8 dot products in registers, 10^9 operations a second.");
    m.def("matmul_seconds", &time_matmul, "type"_a, "rows"_a, "columns"_a, "tokens"_a, "n_threads"_a, "seconds"_a,
          "Best time of a product of packed weights with quantised activations.");
    m.def("quantize", &quantize_tensor, "type"_a, "source"_a, "x"_a, "weights"_a, "trials"_a, "moves"_a, "rounds"_a,
          "n_threads"_a, "The blocks of x (rows, bytes), and weighted sums: see Encoded in gguf/scale_search.py.");
    m.def("matmul", &matmul, "type"_a, "rows"_a, "columns"_a, "data"_a, "x"_a, "panels"_a,
          "x (tokens, columns) times the ggml blocks in data (rows, columns), by gemv or panels: for kernel tests.");

    m.def("packed", &packed, "type"_a, "rows"_a, "columns"_a, "data"_a,
          "The tiles of the ggml blocks in data (rows, columns), as bytes: what Model.map_tensor takes.");
    m.def("packed_bytes", [](int type, int rows, int columns) { return packed_bytes(checked_type(type), rows, columns); },
          "type"_a, "rows"_a, "columns"_a, "How many bytes of tiles a matrix has.");

    nb::class_<Model>(m, "Model")
        .def("__init__", &init_model, nb::kw_only(), "n_vocab"_a, "n_embd"_a, "n_layer"_a, "n_head"_a, "n_head_kv"_a,
             "head_dim"_a, "n_ff"_a, "rms_norm_eps"_a, "rope_dim"_a, "rope_interleaved"_a, "sliding_window"_a,
             "n_threads"_a)
        .def("set_tensor", [](Model& self, const std::string& name, int layer, int type, int rows, int columns,
                              const Array<uint8_t>& data, bool packed) {
            nb::gil_scoped_release release;
            self.set_tensor(name, layer, checked_type(type), rows, columns, data.data(), data.size(),
                            packed ? Form::TILES : Form::BLOCKS);
        }, "name"_a, "layer"_a, "type"_a, "rows"_a, "columns"_a, "data"_a, "packed"_a = false,
             "Takes a tensor in: ggml blocks, or tiles as packed() makes them.")
        .def("map_tensor", [](Model& self, const std::string& name, int layer, int type, int rows, int columns,
                              const Array<uint8_t>& tiles) {
            self.set_tensor(name, layer, checked_type(type), rows, columns, tiles.data(), tiles.size(), Form::TILES_IN_PLACE);
        }, "name"_a, "layer"_a, "type"_a, "rows"_a, "columns"_a, "tiles"_a, nb::keep_alive<1, 7>(),
             "Uses a tensor's tiles where they are, and keeps the array alive.")
        .def("set_rope", [](Model& self, bool long_set, const Array<float>& inv_freq, float attn_factor) {
            self.set_rope(long_set, to_vector(inv_freq), attn_factor);
        }, "long"_a, "inv_freq"_a, "attn_factor"_a)
        .def("finish", &Model::finish)
        .def("forward", &forward, "cache"_a, "tokens"_a, "lengths"_a, "n_past"_a, "long"_a, "pages"_a, "want"_a,
             "n_threads"_a, "adapters"_a = std::vector<Chosen>())
        .def("collect", &Model::collect, "on"_a, nb::call_guard<nb::gil_scoped_release>(),
             "Sum the squares of every product's inputs from now on, or stop and forget them.")
        .def("squares", &squares, "layer"_a, "input"_a, "The sums of one input (0 qkv, 1 attn_output, 2 gate and up, 3 down).")
        .def("add_adapter", &Model::add_adapter)
        .def("set_adapter", [](Model& self, int adapter, const std::string& name, int layer, const Array<float, 2>& a,
                               const Array<float, 2>& b) {
            if (a.shape(0) != b.shape(1)) fail("adapter of " + name + ": a and b differ in rank");
            for (size_t n : {a.shape(0), a.shape(1), b.shape(0)})
                if (n < 1 || n > INT32_MAX) fail("adapter of " + name + ": a dimension of " + std::to_string(n));
            nb::gil_scoped_release release;
            self.set_adapter(adapter, name, layer, (int)a.shape(0), (int)b.shape(0), (int)a.shape(1), a.data(), b.data());
        }, "adapter"_a, "name"_a, "layer"_a, "a"_a, "b"_a)
        .def_prop_ro("n_bytes", &Model::bytes);

    nb::class_<Cache>(m, "Cache")
        .def("__init__", [](Cache* self, const Model& model, const std::string& type) { new (self) Cache(make_cache(model, type)); },
             "model"_a, "type"_a)
        .def_prop_ro("page_tokens", [](const Cache&) { return PAGE_TOKENS; })
        .def_prop_ro("page_bytes", &Cache::page_bytes)
        .def_prop_ro("n_pages", &Cache::pages_in_use)
        .def("new_page", &Cache::new_page)
        .def("free_page", &Cache::free_page, "id"_a)
        .def("copy_page", &Cache::copy_page, "src"_a, "dst"_a)
        .def("read_page", [](const Cache& c, int id) { return nb::bytes((const char*)c.page(id), c.page_bytes()); }, "id"_a)
        .def("write_page", &write_page, "id"_a, "data"_a)
        .def("rotate_keys", &rotate_keys, "id"_a, "cos"_a, "sin"_a,
             "Turns every key of a page: the one in slot s by the angles of row s, one for each rotated pair.");
}
