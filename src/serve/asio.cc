// What Boost.Asio and Boost.Beast have that is no template, compiled once.
#include <boost/asio/impl/src.hpp>
#include <boost/beast/src.hpp>
