#include "jinja/template.h"

#include <gtest/gtest.h>
#include <pthread.h>

#include <chrono>
#include <functional>
#include <nlohmann/json.hpp>

#include "hxq/error.h"

namespace hxq::jinja {
namespace {

using nlohmann::ordered_json;

std::string rendered(const std::string& source, const ordered_json& context = ordered_json::object()) {
  return Template(source, "chat.jinja").render(context);
}

std::string message_of(const std::string& source) {
  try {
    rendered(source);
  } catch (const Error& error) {
    EXPECT_EQ(error.place().file, "chat.jinja");
    EXPECT_EQ(std::string_view(error.what()).find('\n'), std::string_view::npos) << error.what();
    return error.what();
  }
  return "nothing was wrong";
}

std::string repeated(const std::string& text, int times) {
  std::string out;
  for (int i = 0; i < times; ++i) out += text;
  return out;
}

TEST(Template, RendersAConversation) {
  const ordered_json context = {{"messages", {{{"role", "user"}, {"content", " Hi\xC3\xA9 "}}}}, {"eos", "</s>"}};
  EXPECT_EQ(
      rendered("{% for m in messages %}\n<{{ m.role }}>{{ m['content'] | trim }}{{ eos }}\n{% endfor %}", context),
      "<user>Hi\xC3\xA9</s>\n");
}

TEST(Template, ComplaintsNameTheLine) {
  const std::pair<const char*, std::vector<const char*>> cases[] = {
      {"a\n{% if x %}", {"line 2", "endif"}},
      {"{{ 'a' }}\n\n{{ x.y }}", {"line 3", "'x' is undefined"}},
      {"\n{{ raise_exception('roles\\nmust alternate') }}", {"line 2", "roles must alternate"}},
      {"{% include 'x' %}", {"line 1", "'include'", "for"}},
      {"{% for i in [1] %}\n{% macro q() %}{% endmacro %}{% endfor %}", {"line 2", "'macro' inside of a for"}},
      {"{% macro q() %}{% if 1 %}{% macro r() %}{% endmacro %}{% endif %}{% endmacro %}", {"'macro' inside of"}},
      {"{{ 1 | nosuch }}", {"line 1", "'nosuch'"}},
      {"{{ 1 is nosuch }}", {"line 1", "'nosuch'"}},
      {"{{ f(*x) }}", {"line 1", "*"}},
      {"{{ 99999999999999999999 }}", {"line 1", "64 bits"}},
      {"\n{{ 'x\n }}", {"line 2", "not closed"}},
  };
  for (const auto& [source, parts] : cases) {
    const std::string message = message_of(source);
    for (const char* part : parts) EXPECT_NE(message.find(part), std::string::npos) << part << " in: " << message;
  }
}

TEST(Template, MacrosSeeTheVariablesOfTheTemplate) {
  EXPECT_EQ(rendered("{% if 1 %}{% macro q() %}{{ k }}{% endmacro %}{% endif %}{% set k = 1 %}{{ q() }}"), "1");
}

TEST(Template, BlocksPassOnWhatEndsALoop) {
  const auto loop = [](const std::string& body) {
    return rendered("{% for i in [1, 2, 3] %}" + body + "{% endfor %}");
  };
  EXPECT_EQ(loop("{% set x %}a{% break %}b{% endset %}[{{ x }}]"), "");
  EXPECT_EQ(loop("{% set x %}a{% if i == 2 %}{% continue %}{% endif %}b{% endset %}[{{ x }}]"), "[ab][ab]");
  EXPECT_EQ(loop("{{ i }}{% filter upper %}a{% if i == 2 %}{% break %}{% endif %}b{% endfilter %}"), "1AB2");
  EXPECT_EQ(loop("{{ i }}{% generation %}a{% if i == 2 %}{% break %}{% endif %}b{% endgeneration %}"), "1ab2a");
}

TEST(Template, DoesNotChangeWhatItIsGiven) {
  EXPECT_NE(message_of("{% set a = [1] %}{{ a.append(2) }}").find("do not change"), std::string::npos);
  EXPECT_NE(message_of("{% set a = {'b': 1} %}{{ a.update({}) }}").find("update"), std::string::npos);
  EXPECT_NE(message_of("{% set a = {'b': 1} %}{% set a.b = 2 %}").find("namespace"), std::string::npos);
}

/// Templates written to hang, to fill memory or to overflow the stack all end soon, with an error.
TEST(Template, HostileTemplatesEnd) {
  const std::string loops = repeated("{% for i in range(100000) %}", 5) + repeated("{% endfor %}", 5);
  const std::string cases[] = {
      loops,
      "{% for i in range(100000) %}{% for j in range(100000) %}x{% endfor %}{% endfor %}",
      "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
      "{% macro a() %}{{ b() }}{% endmacro %}{% macro b() %}{{ a() }}{% endmacro %}{{ a() }}",
      "{% set ns = namespace(s='x') %}{% for i in range(100) %}{% set ns.s = ns.s ~ ns.s %}{% endfor %}",
      "{% set ns = namespace(s='x') %}{% for i in range(100) %}{% set ns.s = ns.s.replace('x', 'xxxx') %}{% endfor %}",
      "{% set ns = namespace(l=[1]) %}{% for i in range(100) %}{% set ns.l = ns.l + ns.l %}{% endfor %}",
      "{% set ns = namespace(l=[1]) %}{% for i in range(100000) %}{% set ns.l = [ns.l] %}{% endfor %}",
      "{% set ns = namespace(l=[1, 2]) %}{% for i in range(100) %}{% set ns.l = [ns.l, ns.l] %}{% endfor %}{{ ns.l }}",
      "{% set ns = namespace(l=['ab']) %}{% for i in range(60) %}{% set ns.l = [ns.l, ns.l] %}{% endfor %}{{ "
      "ns.l|tojson }}",
      "{% set a = namespace(l=[1]) %}{% set b = namespace(l=[1]) %}{% for i in range(60) %}{% set a.l = [a.l, a.l] %}"
      "{% set b.l = [b.l, b.l] %}{% endfor %}{{ a.l == b.l }}",
      "{% set ns = namespace() %}{% set ns.x = ns %}",
      "{% set ns = namespace(x=1) %}{% set y = [ns] %}",
      "{{ 'x' * 1000000000 }}",
      "{{ [1] * 1000000000 }}",
      "{{ range(1000000000) | list }}",
      "{{ 2 ** 100000000 }}",
      "{{ 9223372036854775807 + 1 }}",
      "{{ -9223372036854775807 - 2 }}",
      "{{ 'a' | indent(1000000000) | indent(1000000000, true) * 100000 }}",
      "{% set x %}" + repeated("y", 100000) + "{% endset %}{% for i in range(100000) %}{{ x }}{% endfor %}",
      "{% for i in range(100000) %}{% set y = range(100000) | list %}{% endfor %}",
      "{{ (['x' * 160] * 100000) | sum(start='') | length }}",
      "{{ ([[1]] * 100000) | sum(start=[]) | length }}",
      "{{ (['x' * 4000000] * 1000) | map('upper') | list | length }}",
      "{{ (['x' * 4000000] * 1000) | sort | length }}",
      "{{ (['x' * 4000000] * 1000) | unique | length }}",
      "{{ (['x' * 4000000] * 1000) | max | length }}",
      "{{ (['x' * 4000000] * 1000) | map('int') | list | length }}",
      "{% set s = 'x' * 4000000 %}{% for i in range(1000) %}{% if s[-1] %}{% endif %}{% endfor %}",
      "{% set s = 'x' * 4000000 %}{% for i in range(1000) %}{% if s[1:] %}{% endif %}{% endfor %}",
      "{% set a = ['x' * 4000000] * 1000 %}{% set b = ['x' * 4000000] * 1000 %}{{ a == b }}",
      "{% set n = 'x' * 4000000 %}{% for i in range(1000) %}{{ [{}[n]] * 1000 }}{% endfor %}",
      "{% set n = 'x' * 4000000 %}{{ dict(a=1) | list | map(attribute=n) | list }}{% for i in range(9999) %}{{ {n: 1} "
      "}}{% endfor %}",
      "{% set s = 'x' * 4000000 %}{% set t = 'x' * 2000000 ~ 'y' %}{% for i in range(1000) %}{{ t in s }}{{ "
      "s.rfind('y' ~ t) }}{% endfor %}",
      "{% set s = 'x' * 4000000 %}{% set t = 'y' * 4000000 ~ 'x' %}{{ s.strip(t) }}",
      "{{ 'x' | map(" + repeated("'map',", 10000) + "'upper') }}",
      "{{ [1] | map('default'," + repeated("default_value=1,", 1000) +
          ") }}{% for i in range(100000) %}{{ ([1] * 1000) | "
          "map('default', " +
          repeated("boolean=1,", 1000) + ") }}{% endfor %}",
      "{{ " + repeated("(", 100000) + "1" + repeated(")", 100000) + " }}",
      "{{ " + repeated("[", 100000) + " }}",
      "{{ " + repeated("-", 100000) + "1 }}",
      "{{ " + repeated("not ", 100000) + "1 }}",
      "{{ " + repeated("1 if 1 else ", 100000) + "1 }}",
      "{{ x" + repeated(".a", 100000) + " }}",
      "{{ 1" + repeated("|abs", 100000) + " }}",
      "{{ range" + repeated("(1)", 100000) + " }}",
      repeated("{% if 1 %}", 50000),
      repeated("{{ ", 100000),
      repeated("{%- raw %}", 50000),
  };
  for (const std::string& source : cases) {
    const auto start = std::chrono::steady_clock::now();
    EXPECT_THROW(rendered(source), Error) << source.substr(0, 200);
    // A bound against hanging, not on speed.
    EXPECT_LT(std::chrono::steady_clock::now() - start, std::chrono::seconds(60)) << source.substr(0, 200);
  }
}

/// A long conversation is far from what templates may do.
TEST(Template, LongConversationsAreFine) {
  ordered_json messages = ordered_json::array();
  for (int i = 0; i < 1000; ++i) messages.push_back({{"role", "user"}, {"content", " </t>" + repeated("word ", 600)}});
  const std::string out = rendered(
      "{% for m in messages %}{% set c = m['content'] | trim %}{% if '</t>' in c %}{% set c = c.split('</t>')[-1] %}"
      "{% endif %}{{ '<' + m.role + '>' + c.strip() + '\n' }}{% if messages[loop.index0:] | length > 1000 %}x{% endif "
      "%}"
      "{% endfor %}",
      {{"messages", messages}});
  EXPECT_EQ(out.size(), 1000u * (6 + 2999 + 1));
}

TEST(Template, IndicesCountCharacters) {
  EXPECT_EQ(
      rendered(
          "{% set s = 'a\xC3\xA9\xE2\x82\xAC' %}{{ s[0] }}{{ s[1] }}{{ s[-1] }}{{ s[3] }}{{ s[-4] }}{{ s | length }}"),
      "a\xC3\xA9\xE2\x82\xAC"
      "3");
  EXPECT_EQ(rendered("{{ 'aXbXc'.rfind('X') }}{{ 'abc'.rfind('z') }}{{ 'abc'.rfind('') }}{{ 'abc'.find('') }}{{ 'aab' "
                     "in 'aaab' }}"),
            "3-130True");
}

/// Runs `run` on a thread with a stack of so many bytes.
void run_with_stack(size_t bytes, const std::function<void()>& run) {
  pthread_attr_t attributes;
  ASSERT_EQ(pthread_attr_init(&attributes), 0);
  ASSERT_EQ(pthread_attr_setstacksize(&attributes, bytes), 0);
  pthread_t thread;
  const auto start = [](void* argument) -> void* {
    (*static_cast<const std::function<void()>*>(argument))();
    return nullptr;
  };
  ASSERT_EQ(pthread_create(&thread, &attributes, start, const_cast<std::function<void()>*>(&run)), 0);
  pthread_join(thread, nullptr);
  pthread_attr_destroy(&attributes);
}

TEST(Template, NestsWithinALittleStack) {
#if defined(__SANITIZE_ADDRESS__) || !defined(NDEBUG)
  constexpr size_t kStack = size_t{8} << 20;  // their frames are larger
#else
  constexpr size_t kStack = size_t{1} << 20;
#endif
  const auto nested = [](const std::string& begin, const std::string& end, const std::string& call) {
    return "{% macro m() %}" + repeated(begin, 90) + call + repeated(end, 90) + "{% endmacro %}{{ m() }}";
  };
  const std::string cases[] = {
      nested("{% for i in [1] %}", "{% endfor %}", "{{ m() }}"),
      nested("{% if 1 %}", "{% endif %}", "{{ m() }}"),
      nested("{% set x %}", "{% endset %}", "{{ m() }}"),
      nested("{% filter upper %}", "{% endfilter %}", "{{ m() }}"),
      nested("{% generation %}", "{% endgeneration %}", "{{ m() }}"),
      nested("", "", "{{ [" + repeated("(", 40) + "m()" + repeated(")", 40) + "] }}"),
      nested("", "", "{{ [[[[[[[[[[m() | upper]]]]]]]]]] }}"),
      nested("", "", "{{ {'a': {'a': 1 + 2 * (m() if 1 else 0)}} }}"),
      nested("", "", "{{ m() | map('map', 'map', 'map', 'upper') }}"),
  };
  for (const std::string& source : cases) {
    run_with_stack(kStack, [&] { EXPECT_THROW(rendered(source), Error) << source.substr(0, 100); });
  }
}

TEST(Template, LongTemplatesThatNestLittleAreFine) {
  EXPECT_EQ(rendered("{{ 0" + repeated(" + 1", 5000) + " }}"), "5000");
  EXPECT_EQ(rendered("{% if false %}x" + repeated("{% elif false %}y", 5000) + "{% else %}z{% endif %}"), "z");
  EXPECT_EQ(rendered("{{ " + repeated("(", 40) + "1" + repeated(")", 40) + " }}"), "1");
}

TEST(Template, TakesAnyBytes) {
  EXPECT_EQ(rendered("a\xFF{{ '\xE2\x82' }}b"), "a\xEF\xBF\xBD\xEF\xBF\xBD\x62");
  EXPECT_EQ(rendered(std::string("a\0b", 3)), std::string("a\0b", 3));
}

}  // namespace
}  // namespace hxq::jinja
