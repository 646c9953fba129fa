#pragma once

namespace hxq {

/// From now on, reading a part of a mapped model file that is no longer there (the file was truncated, a disk has
/// failed) gives zeros and is noted, where otherwise the signal SIGBUS would end the process. Installs a signal
/// handler: for programs that own the process. Faults elsewhere are left to the handler that was there before.
void guard_mapped_files();

/// False once any read of a mapped file found its bytes missing.
bool mapped_files_are_whole() noexcept;

/// Throws `Error` naming the file if such a read has happened.
void check_mapped_files();

}  // namespace hxq
