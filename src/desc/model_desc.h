#pragma once

#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <variant>
#include <vector>

#include "desc/activation.h"
#include "desc/rope.h"
#include "hxq/tensor.h"

namespace hxq {

/// What a tensor does in a model. The codec policy reads this and the shape, never the name.
enum class Role : uint8_t {
  embedding,      ///< token embedding table [vocab, hidden]
  projection,     ///< weight of a linear layer [out, in]
  head,           ///< output projection [vocab, hidden]
  conv,           ///< depthwise convolution filter or its bias
  norm,           ///< normalisation weight
  ssm_parameter,  ///< A_log, D, dt bias
  bias,           ///< bias of a linear layer
};

std::string_view name_of(Role role) noexcept;

/// Whether tensors of that role are matrices that are multiplied with, or whose rows are looked up.
constexpr bool is_matrix(Role role) noexcept {
  return role == Role::embedding || role == Role::projection || role == Role::head;
}

/// Position of a tensor in ModelDesc::weights.
using WeightId = int32_t;
inline constexpr WeightId kNoWeight = -1;

/// One stored tensor of a model, named as in the Hugging Face checkpoint.
struct WeightDesc {
  std::string name;
  Shape shape;
  Role role;
  bool optional = false;  ///< may be absent from the checkpoint
  int32_t uses = 1;       ///< how many blocks share it
};

/// A residual Mamba-1 block: x += out_proj(scan(conv(in_proj(norm(x))))).
struct MambaBlockDesc {
  int64_t inner = 0;             ///< channels of the scan (intermediate_size)
  int64_t state_size = 0;        ///< states per channel (N)
  int64_t conv_width = 0;        ///< taps of the causal convolution
  int64_t dt_rank = 0;           ///< width of the low-rank projection of the time step
  WeightId norm = kNoWeight;     // [hidden]
  WeightId in_proj = kNoWeight;  // [2 * inner, hidden]: x, then the gate z
  WeightId in_proj_bias = kNoWeight;
  WeightId conv_weight = kNoWeight;  // [inner, 1, conv_width]
  WeightId conv_bias = kNoWeight;    // [inner]
  WeightId x_proj = kNoWeight;       // [dt_rank + 2 * state_size, inner]: dt, B, C
  WeightId dt_proj = kNoWeight;      // [inner, dt_rank]
  WeightId dt_bias = kNoWeight;      // [inner]
  WeightId a_log = kNoWeight;        // [inner, state_size]
  WeightId d = kNoWeight;            // [inner]
  WeightId out_proj = kNoWeight;     // [hidden, inner]
  WeightId out_proj_bias = kNoWeight;
};

/// A residual Mamba-2 block: x += out_proj(gate_norm(ssd(conv(in_proj(norm(x)))) * silu(z))).
struct Mamba2BlockDesc {
  int64_t heads = 0;
  int64_t head_dim = 0;
  int64_t groups = 0;      ///< of heads, each with B and C of its own; the gated norm works group by group as well
  int64_t state_size = 0;  ///< states per element of a head (N)
  int64_t conv_width = 0;  ///< taps of the causal convolution
  float dt_min = 0;        ///< bounds of the time step
  float dt_max = 0;
  float gate_norm_eps = 0;
  WeightId norm = kNoWeight;     // [hidden]
  WeightId in_proj = kNoWeight;  // [2 * inner + 2 * groups * state_size + heads, hidden]: z, x, B, C, dt
  WeightId in_proj_bias = kNoWeight;
  WeightId conv_weight = kNoWeight;  // [conv_channels, 1, conv_width]
  WeightId conv_bias = kNoWeight;    // [conv_channels]
  WeightId dt_bias = kNoWeight;      // [heads]
  WeightId a_log = kNoWeight;        // [heads]
  WeightId d = kNoWeight;            // [heads]
  WeightId gate_norm = kNoWeight;    // [inner]
  WeightId out_proj = kNoWeight;     // [hidden, inner]
  WeightId out_proj_bias = kNoWeight;

  int64_t inner() const noexcept { return heads * head_dim; }
  int64_t conv_channels() const noexcept { return inner() + 2 * groups * state_size; }  ///< x, B, C
  int64_t projected() const noexcept { return inner() + conv_channels() + heads; }
};

/// Causal self-attention with rotary positions; heads / kv_heads queries share keys and values.
struct AttentionDesc {
  int64_t heads = 0;
  int64_t kv_heads = 0;
  int64_t head_dim = 0;
  int64_t window = 0;  ///< positions a token sees, its own included; 0: all before it
  RopeDesc rope;
  WeightId norm = kNoWeight;    // [hidden]
  WeightId q_proj = kNoWeight;  // [heads * head_dim, hidden]
  WeightId k_proj = kNoWeight;  // [kv_heads * head_dim, hidden]
  WeightId v_proj = kNoWeight;  // [kv_heads * head_dim, hidden]
  WeightId o_proj = kNoWeight;  // [hidden, heads * head_dim]
  WeightId q_bias = kNoWeight;
  WeightId k_bias = kNoWeight;
  WeightId v_bias = kNoWeight;
  WeightId o_bias = kNoWeight;
};

/// down_proj(activation(gate_proj(norm(x))) * up_proj(norm(x))).
struct GatedMlpDesc {
  int64_t inner = 0;  ///< intermediate_size
  Activation activation = Activation::silu;
  WeightId norm = kNoWeight;       // [hidden]
  WeightId gate_proj = kNoWeight;  // [inner, hidden]
  WeightId up_proj = kNoWeight;    // [inner, hidden]
  WeightId down_proj = kNoWeight;  // [hidden, inner]
  WeightId gate_bias = kNoWeight;
  WeightId up_bias = kNoWeight;
  WeightId down_bias = kNoWeight;
};

/// x += attention(norm(x)), then x += mlp(norm(x)).
struct TransformerBlockDesc {
  AttentionDesc attention;
  GatedMlpDesc mlp;
};

/// A weight that several blocks share, plus a low-rank term that belongs to one of them: y = W x + up (down x).
struct AdaptedWeight {
  WeightId weight = kNoWeight;  // [out, in]
  WeightId down = kNoWeight;    // [rank, in]
  WeightId up = kNoWeight;      // [out, rank]
};

/// Zamba2's hybrid layer. Of the transformer all but the adapters and `linear` is shared with other layers:
///     t = linear(down_proj(activation(gate) * up)),   gate, up = gate_up(mlp_norm(attention(input_norm([x,
///     embedding])))) x += mamba(norm(x + t))
struct Zamba2BlockDesc {
  int64_t heads = 0;
  int64_t kv_heads = 0;
  int64_t head_dim = 0;
  int64_t mlp_inner = 0;
  int64_t adapter_rank = 0;
  bool rotary = false;  ///< whether attention has positions at all
  RopeDesc rope;
  Activation activation = Activation::gelu;
  WeightId input_norm = kNoWeight;    // [2 * hidden]
  AdaptedWeight q_proj;               // [heads * head_dim, 2 * hidden]
  AdaptedWeight k_proj;               // [kv_heads * head_dim, 2 * hidden]
  AdaptedWeight v_proj;               // [kv_heads * head_dim, 2 * hidden]
  WeightId o_proj = kNoWeight;        // [hidden, heads * head_dim]
  WeightId mlp_norm = kNoWeight;      // [hidden]
  AdaptedWeight gate_up_proj;         // [2 * mlp_inner, hidden]
  WeightId gate_up_bias = kNoWeight;  // [2 * mlp_inner]
  WeightId down_proj = kNoWeight;     // [hidden, mlp_inner]
  WeightId down_bias = kNoWeight;     // [hidden]
  WeightId linear = kNoWeight;        // [hidden, hidden]
  Mamba2BlockDesc mamba;
};

using BlockDesc = std::variant<MambaBlockDesc, Mamba2BlockDesc, TransformerBlockDesc, Zamba2BlockDesc>;

/// Another prefix under which tensors that blocks share may be stored once more.
struct SharedPrefix {
  std::string prefix;
  std::string stored;  ///< the prefix in ModelDesc::weights
};

/// A language model as a list of weights and of the blocks that use them. A weight that is used twice (a tied head, a
/// shared block) is stored once and referred to by its id.
struct ModelDesc {
  std::string model_type;
  int64_t vocab_size = 0;
  int64_t hidden_size = 0;
  float norm_eps = 0;
  int64_t max_positions = 0;  ///< tokens a sequence may have; 0: no limit
  std::vector<WeightDesc> weights;
  std::vector<BlockDesc> blocks;
  std::string layer_prefix;  ///< before a layer's number in the names of its weights
  std::vector<SharedPrefix> shared_prefixes;
  WeightId embedding = kNoWeight;
  WeightId final_norm = kNoWeight;
  WeightId head = kNoWeight;           ///< an optional weight when the head is tied
  bool blocks_read_embedding = false;  ///< blocks get the token embeddings beside their input (Zamba2)
  bool tied_head = false;              ///< the embedding serves as head where the head's tensor is absent
  std::vector<int32_t> eos_tokens;     ///< generation stops at any of these
  int32_t bos_token = -1;              ///< -1: none

  WeightId add(std::string name, Shape shape, Role role, bool optional = false);
};

/// The `model_type`s that `describe` knows.
std::vector<std::string> known_architectures();

/// Whether the runtime knows the architecture: `model_type` is one of the above and `architectures`, where the config
/// has it, lists a causal language model (not, say, an encoder or a classifier made of the same layers).
bool is_known(const nlohmann::json& config) noexcept;

/// Reads a Hugging Face config.json. Throws `Error` for a missing or malformed field, and for an unknown `model_type`
/// (the message lists the known ones). `file` names the config in messages.
ModelDesc describe(const nlohmann::json& config, const std::string& file);

}  // namespace hxq
