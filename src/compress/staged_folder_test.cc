#include "compress/staged_folder.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/file.h>
#include <unistd.h>

#include <fstream>

#include "hxq/error.h"
#include "temp_dir.h"

namespace hxq {
namespace {

namespace fs = std::filesystem;

std::string text_of(const fs::path& file) {
  std::ifstream stream(file);
  return {std::istreambuf_iterator<char>(stream), {}};
}

size_t entries_of(const fs::path& dir) {
  return static_cast<size_t>(std::distance(fs::directory_iterator(dir), fs::directory_iterator()));
}

void has_marker(const fs::path& folder) {
  if (fs::is_symlink(folder) || !fs::exists(folder / "marker")) throw Error("has no marker");
}

TEST(StagedFolder, IsThereOnlyWhenCommitted) {
  const testing::TempDir dir;
  {
    const StagedFolder folder(dir.path() / "out");
    folder.write("a", "1");
    EXPECT_FALSE(fs::exists(dir.path() / "out"));
  }
  EXPECT_EQ(entries_of(dir.path()), 0u);
  StagedFolder folder(dir.path() / "new/out/");
  folder.write("a", "1");
  folder.commit();
  EXPECT_EQ(text_of(dir.path() / "new/out/a"), "1");
}

TEST(StagedFolder, ReplacesOnlyWhatTheCheckAllows) {
  const testing::TempDir dir;
  dir.write("mine/notes", "precious");
  dir.write("old/marker", "old");
  fs::create_directory_symlink(dir.path() / "old", dir.path() / "link");
  EXPECT_THROW(StagedFolder(dir.path() / "mine", has_marker), Error);
  EXPECT_THROW(StagedFolder(dir.path() / "old"), Error);
  EXPECT_THROW(StagedFolder(dir.path() / "link", has_marker), Error);
  EXPECT_THROW(StagedFolder(""), Error);
  {
    StagedFolder folder(dir.path() / "old", has_marker);
    folder.write("marker", "new");
    folder.commit();
    // A process that is killed while it removes the old one leaves what the next knows for its own.
    EXPECT_EQ(text_of(dir.path() / "old.partial/marker"), "old");
    EXPECT_TRUE(fs::exists(dir.path() / "old.partial" / StagedFolder::kMark));
    // While it is removed it belongs to nobody else; the new one is free.
    EXPECT_THROW(StagedFolder(dir.path() / "old", has_marker), Error);
    EXPECT_EQ(text_of(dir.path() / "old.partial/marker"), "old");
  }
  EXPECT_EQ(text_of(dir.path() / "old/marker"), "new");
  EXPECT_EQ(entries_of(dir.path()), 3u);
}

TEST(StagedFolder, ReplacesAFolderThatOthersHaveLocked) {
  const testing::TempDir dir;
  dir.write("old/marker", "old");
  const int other = open((dir.path() / "old").c_str(), O_RDONLY | O_DIRECTORY);
  ASSERT_EQ(flock(other, LOCK_EX), 0);
  {
    StagedFolder folder(dir.path() / "old", has_marker);
    folder.write("marker", "new");
    folder.commit();
  }
  close(other);
  EXPECT_EQ(text_of(dir.path() / "old/marker"), "new");
  EXPECT_EQ(entries_of(dir.path()), 1u);
}

TEST(StagedFolder, BelongsToOneAtATime) {
  const testing::TempDir dir;
  const StagedFolder folder(dir.path() / "out");
  EXPECT_THROW(StagedFolder(dir.path() / "out"), Error);
  EXPECT_THROW(StagedFolder(dir.path() / "out", {}, StagedFolder::Leftovers::take_up), Error);
  EXPECT_NO_THROW(StagedFolder(dir.path() / "other"));
  EXPECT_TRUE(fs::exists(folder.path()));
}

TEST(StagedFolder, ClearsOrTakesUpWhatAKilledProcessLeft) {
  const testing::TempDir dir;
  const auto leave = [&] {
    dir.write("out.partial/.hxq-partial", "");
    dir.write("out.partial/work/a", "1");
  };
  leave();
  {
    const StagedFolder folder(dir.path() / "out");
    EXPECT_FALSE(folder.taken_up());
    EXPECT_FALSE(fs::exists(folder.path() / "work"));
  }
  leave();
  StagedFolder folder(dir.path() / "out", {}, StagedFolder::Leftovers::take_up);
  EXPECT_TRUE(folder.taken_up());
  EXPECT_EQ(text_of(folder.path() / "work/a"), "1");
  folder.commit();
  EXPECT_EQ(entries_of(dir.path() / "out"), 1u);
  EXPECT_EQ(entries_of(dir.path()), 1u);
}

TEST(StagedFolder, LeavesAFolderThatIsTheUsers) {
  const testing::TempDir dir;
  dir.write("out.partial/notes", "precious");
  EXPECT_THROW(StagedFolder(dir.path() / "out"), Error);
  EXPECT_EQ(text_of(dir.path() / "out.partial/notes"), "precious");
  dir.write("file.partial", "precious");
  EXPECT_THROW(StagedFolder(dir.path() / "file"), Error);
}

TEST(StagedFolder, LeavesWhatAnotherProcessMadeInTheMeantime) {
  for (const StagedFolder::Check& check : {StagedFolder::Check(), StagedFolder::Check(has_marker)}) {
    const testing::TempDir dir;
    {
      StagedFolder folder(dir.path() / "out", check);
      folder.write("marker", "late");
      dir.write("out/notes", "precious");
      EXPECT_THROW(folder.commit(), Error);
    }
    EXPECT_EQ(text_of(dir.path() / "out/notes"), "precious");
    EXPECT_EQ(entries_of(dir.path()), 1u);
  }
}

}  // namespace
}  // namespace hxq
