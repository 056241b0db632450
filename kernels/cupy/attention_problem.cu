// What a call of attention is about; the layout is that of `_launch` in attention.py. D and E, the widths of a key and of
// a value (which may be 0), are compiled in.

struct Problem {
    int64 b, h, t, s, causal;
    Array query, key, value, bias, mask, out, lse, grad_out, row_sums, grad_query, grad_key, grad_value, grad_bias;
    address lengths;
    int64 bias_shape[4];
    Array begins, ends;  // of sequences packed end to end, for each token those of its own

    __device__ int64 length(int64 i_b) const { return lengths ? ((const int64*)lengths)[i_b] : s; }
    __device__ int64 begin(int64 i) const {
        int64 first = begins.base ? begins.integer(i) : 0;
        return first > 0 ? first : 0;
    }
    __device__ int64 end(int64 i_b, int64 i_t) const {  // one past the last key that a query may see
        int64 last = ends.base ? ends.integer(i_t) : length(i_b), own = i_t + 1 + s - t;
        last = causal && own < last ? own : last;
        last = last < s ? last : s;  // whatever the lengths say
        return last > 0 ? last : 0;
    }
    __device__ bool hidden(int64 i_b, int64 i_h, int64 i_t, int64 i_s) const {
        return mask.base && !*(const unsigned char*)mask.at(i_b, i_h, i_t, i_s);
    }
    __device__ CORE score(int64 i_b, int64 i_h, int64 i_t, int64 i_s, CORE scale) const {
        CORE sum = 0;
        for (int i = 0; i < D; i++) sum += query.get(i_b, i_h, i_t, i) * key.get(i_b, i_h, i_s, i);
        sum *= scale;
        return bias.base ? sum + bias.get(i_b, i_h, i_t, i_s) : sum;
    }
    // P and dS of one query and key
    __device__ void gradient(int64 i_b, int64 i_h, int64 i_t, int64 i_s, CORE scale, CORE* weight, CORE* grad) const {
        CORE log_sum = lse.get(i_b, i_h, i_t, 0), products = 0;
        *weight = exp(score(i_b, i_h, i_t, i_s, scale) - (log_sum == minus_infinity() ? (CORE)0 : log_sum));
        for (int i = 0; i < E; i++) products += grad_out.get(i_b, i_h, i_t, i) * value.get(i_b, i_h, i_s, i);
        *grad = *weight == 0 ? (CORE)0 : *weight * (products - row_sums.get(i_b, i_h, i_t, 0));
    }
};
