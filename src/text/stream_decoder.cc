#include "text/tokenizer_impl.h"

namespace hxq {

struct StreamDecoder::Impl {
  const Tokenizer::Impl* tokenizer;
  bool skip_special_tokens;
  text::Decoder::Stream stream;
};

StreamDecoder::StreamDecoder(const Tokenizer& tokenizer, bool skip_special_tokens)
    : impl_(new Impl{tokenizer.impl_.get(), skip_special_tokens, text::Decoder::Stream(tokenizer.impl_->decoder)}) {}

StreamDecoder::StreamDecoder(StreamDecoder&&) noexcept = default;
StreamDecoder& StreamDecoder::operator=(StreamDecoder&&) noexcept = default;
StreamDecoder::~StreamDecoder() = default;

std::string StreamDecoder::push(int32_t id) {
  impl_->tokenizer->push(impl_->stream, id, impl_->skip_special_tokens);
  return impl_->stream.take();
}

std::string StreamDecoder::flush() {
  impl_->stream.finish();
  return impl_->stream.take();
}

}  // namespace hxq
