#pragma once

#include "serve/hub.h"

namespace hxq::serve {

/// Serves a connection until it ends. Runs on the hub's I/O thread.
void start_connection(Hub& hub, asio::ip::tcp::socket socket);

}  // namespace hxq::serve
