// What an earlier run left is taken up if it is a journal of the same work; anything else counts as none.

#include "compress/journal.h"

#include <gtest/gtest.h>

#include "file_size_limit.h"
#include "io/json.h"
#include "temp_dir.h"

namespace hxq {
namespace {

constexpr const char* kIdentity = "what and how";

TensorReceipt receipt_of(const std::string& name) {
  TensorReceipt receipt;
  receipt.name = name;
  receipt.codec = "exact";
  return receipt;
}

class JournalTest : public ::testing::Test {
 protected:
  /// A journal of tensors a and b.
  void write() {
    Journal journal(folder_.path(), kIdentity);
    journal.begin();
    journal.note(receipt_of("a"));
    journal.note(receipt_of("b"));
  }

  std::filesystem::path file() const { return folder_.path() / Journal::kFile; }

  testing::TempDir folder_;
};

TEST_F(JournalTest, GivesWhatWasNoted) {
  write();
  Journal journal(folder_.path(), kIdentity);
  EXPECT_EQ(journal.next()->name, "a");
  EXPECT_EQ(journal.next()->name, "b");
  EXPECT_FALSE(journal.next());
}

TEST_F(JournalTest, KeepsWhatWasTakenUpWhenItBegins) {
  write();
  Journal second(folder_.path(), kIdentity);
  second.next();
  second.begin();
  second.note(receipt_of("c"));
  Journal third(folder_.path(), kIdentity);
  EXPECT_EQ(third.next()->name, "a");
  EXPECT_EQ(third.next()->name, "c");
  EXPECT_FALSE(third.next());
}

/// It must leave what was noted even if it comes to nothing, as when the run is killed: nothing is written anew.
TEST_F(JournalTest, BeginsWithoutWritingWhatWasTakenUp) {
  write();
  {
    Journal second(folder_.path(), kIdentity);
    while (second.next()) {
    }
    const testing::FileSizeLimit no_more(1);
    second.begin();
  }
  Journal third(folder_.path(), kIdentity);
  EXPECT_EQ(third.next()->name, "a");
  EXPECT_EQ(third.next()->name, "b");
}

TEST_F(JournalTest, IsNotThatOfOtherWork) {
  write();
  EXPECT_FALSE(Journal(folder_.path(), "something else").has_lines());
}

TEST_F(JournalTest, ALineWithoutItsEndIsNotTakenUp) {
  write();
  std::filesystem::resize_file(file(), std::filesystem::file_size(file()) - 1);
  Journal journal(folder_.path(), kIdentity);
  EXPECT_EQ(journal.next()->name, "a");
  EXPECT_FALSE(journal.next());
}

/// As large as a list may be it is read; with a byte more it is none, and is not.
TEST_F(JournalTest, HasALimit) {
  write();
  const auto noted = std::filesystem::file_size(file());
  std::filesystem::resize_file(file(), kMaxJsonList);  // zeros, of which nothing is stored: a line without its end
  EXPECT_TRUE(Journal(folder_.path(), kIdentity).has_lines());
  std::filesystem::resize_file(file(), kMaxJsonList + 1);
  EXPECT_FALSE(Journal(folder_.path(), kIdentity).has_lines());
  std::filesystem::resize_file(file(), noted);
  EXPECT_TRUE(Journal(folder_.path(), kIdentity).has_lines());
}

}  // namespace
}  // namespace hxq
