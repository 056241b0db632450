"""Graph runtimes' own operations in the operations' signatures: a graph for each shape, compiled once.

As in ``adapters``, the source of a maker is all that a stand-alone script takes. Both runtimes take as many threads as
``OMP_NUM_THREADS`` says, or all processors.
"""


def onnx_runtime(name):
    import functools
    import os

    import numpy as np
    import onnxruntime
    from onnx import helper, numpy_helper

    def attention(dtype, shapes, causal=False, scale=None):
        # separate products and softmax: its Attention operator is as fast, and slower where causal
        (t, d), s = shapes[0][2:], shapes[1][2]
        constants = {"scale": np.array(d**-0.5 if scale is None else scale, dtype)}
        nodes = [("Transpose", "b", "turned", {"perm": (0, 1, 3, 2)}), ("Mul", "a scale", "scaled", {})]
        nodes.append(("MatMul", "scaled turned", "scores", {}))
        if causal:
            constants["mask"] = np.where(np.tri(t, s, s - t, bool), 0, -np.inf).astype(dtype)
            nodes.append(("Add", "scores mask", "masked", {}))
        nodes.append(("Softmax", "masked" if causal else "scores", "weights", {"axis": -1}))
        return [*nodes, ("MatMul", "weights c", "out", {})], constants

    def layer_norm(dtype, shapes, eps=1e-5):
        return [("LayerNormalization", " ".join("abc"[: len(shapes)]), "out", {"axis": -1, "epsilon": eps})], {}

    def gelu(dtype, shapes, kind="erf"):
        if kind == "sigmoid":
            nodes = [("Mul", "a factor", "scaled", {}), ("Sigmoid", "scaled", "gate", {}), ("Mul", "a gate", "out", {})]
            return nodes, {"factor": np.array(1.702, dtype)}
        return [("Gelu", "a", "out", {"approximate": "none" if kind == "erf" else kind})], {}

    @functools.lru_cache(maxsize=16)
    def session(dtype, shapes, options):
        nodes, constants = graphs[name](dtype, shapes, **dict(options))
        number = helper.np_dtype_to_tensor_dtype(dtype)
        inputs = [helper.make_tensor_value_info(*one) for one in zip("abc", [number] * 3, shapes, strict=False)]
        graph = helper.make_graph(
            [helper.make_node(kind, given.split(), [out], **more) for kind, given, out, more in nodes], name, inputs,
            [helper.make_tensor_value_info("out", number, None)],
            [numpy_helper.from_array(x, constant) for constant, x in constants.items()],
        )  # fmt: skip
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
        settings = onnxruntime.SessionOptions()
        settings.intra_op_num_threads = int(os.environ.get("OMP_NUM_THREADS", 0))
        return onnxruntime.InferenceSession(model.SerializeToString(), settings, ["CPUExecutionProvider"])

    def function(*arguments, **options):
        arrays = [np.require(x, None, ["C", "A"]) for x in arguments if x is not None]
        made = session(arrays[0].dtype, tuple(x.shape for x in arrays), tuple(options.items()))
        return made.run(None, dict(zip("abc", arrays, strict=False)))[0]

    graphs = {"attention": attention, "layer_norm": layer_norm, "gelu": gelu}
    return function


def openvino(name):
    import functools
    import os

    import numpy as np
    import openvino as vino
    from openvino import opset13 as graph

    # Its processor plug-in gives the calling thread a signal stack, and takes it away with the last user of a core. Of
    # two cores the later may put back the stack that went with the earlier: the next signal then kills the process.
    core = vino.__dict__.setdefault("kept_core", vino.Core())

    def attention(query, key, value, causal=False, scale=None):
        # separate products and softmax, which it fuses: faster than its own attention operator
        (t, d), s = tuple(query.shape)[2:], tuple(key.shape)[2]
        kind = query.get_element_type()
        scaled = graph.multiply(query, graph.constant(np.array(d**-0.5 if scale is None else scale), kind))
        scores = graph.matmul(scaled, key, False, True)
        if causal:
            mask = np.where(np.tri(t, s, s - t, bool), 0, -np.inf).astype(np.float32)
            scores = graph.add(scores, graph.constant(mask, kind))
        return graph.matmul(graph.softmax(scores, -1), value, False, False)

    def layer_norm(x, scale, bias=None, eps=1e-5):
        axes = graph.constant(np.array([len(x.shape) - 1]))
        scaled = graph.multiply(graph.mvn(x, axes, True, eps, "inside_sqrt"), scale)
        return scaled if bias is None else graph.add(scaled, bias)

    def gelu(x, kind="erf"):
        if kind == "sigmoid":
            return graph.swish(x, graph.constant(np.array(1.702), x.get_element_type()))
        return graph.gelu(x, kind)

    def kind_of(dtype):
        # by default it would compute float32 in bfloat16 where the processor has that
        return vino.Type.bf16 if dtype.itemsize == 2 else vino.Type.f32

    @functools.lru_cache(maxsize=16)
    def request(dtype, shapes, options):
        inputs = [graph.parameter(shape, kind_of(dtype)) for shape in shapes]
        out = {"attention": attention, "layer_norm": layer_norm, "gelu": gelu}[name](*inputs, **dict(options))
        threads = int(os.environ.get("OMP_NUM_THREADS", 0))
        settings = {"INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": kind_of(dtype)}
        model = vino.Model([out], inputs, name)  # pyright: ignore[reportGeneralTypeIssues]
        compiled = core.compile_model(model, "CPU", settings)
        return compiled.create_infer_request(), tuple(compiled.output(0).shape)

    def shared(x):
        bits = x.view(np.int16) if x.dtype.itemsize == 2 else x
        return vino.Tensor(bits, vino.Shape(x.shape), kind_of(x.dtype))

    def function(*arguments, **options):
        arrays = [np.require(x, None, ["C", "A"]) for x in arguments if x is not None]
        made, shape = request(arrays[0].dtype, tuple(x.shape for x in arrays), tuple(options.items()))
        out = np.empty(shape, arrays[0].dtype)
        made.set_output_tensor(0, shared(out))
        made.infer(list(map(shared, arrays)), share_inputs=True)
        return out

    return function
