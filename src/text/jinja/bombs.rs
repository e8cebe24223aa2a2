//! Templates that ask for too much, each an error within bounds.

use serde_json::{Map, Value as Json, json};

use super::{JinjaError, Template, Written};

/// Renders on a thread with the stack that Rust gives threads, which an overflow would end with the process.
fn render(source: String) -> Result<Written, JinjaError> {
    let context: Map<String, Json> =
        Map::from_iter([("messages".to_owned(), json!([{"role": "user", "content": "a"}]))]);
    let render = move || Template::parse(&source)?.render(&context, &[], None);
    std::thread::Builder::new().stack_size(2 << 20).spawn(render).unwrap().join().unwrap()
}

fn refused(sources: impl IntoIterator<Item = String>) {
    for source in sources {
        let start: String = source.chars().take(200).collect();
        assert!(render(source).is_err(), "{start}");
    }
}

/// The number of times that a loop runs which nothing ends early.
const OFTEN: &str = "range(100000)";

#[test]
fn huge_values_are_refused_before_allocation() {
    let sources = [
        "1 in [0] * 10 ** 12",
        "([0] * 10 ** 12)[::-1]",
        "[0] * 10 ** 12",
        "(1,) * 10 ** 12",
        "'a' * 10 ** 12",
        "'x'.ljust(10 ** 12)",
        "'x' | center(10 ** 12)",
        "('\\t' * 100000).expandtabs(100000)",
        "'%1000000000d' % 1",
        "'%.1000000000f' % 1",
        "'{:1000000000}'.format(1)",
        "'{:.100000f}'.format(1.0)",
        "2 ** 1000",
        "2 ** 126 * 4",
        "range(10 ** 9)",
        "[1] | batch(10 ** 12, 'x') | list",
        "[1] | slice(10 ** 12) | list",
        "'a' | indent(10 ** 12)",
        "('\\n' * 10000000) | indent(200, blank=true)",
        "strftime_now('%c' * 1000000)",
        "'a'.join([''] * 10000000)",
        "('a' * 100000) | replace('a', 'b' * 100000)",
        "('x' * 100000).translate({120: 'y' * 100000})",
        "messages | tojson(indent='x' * 1000000)",
        "([0] * 300000) | tojson(separators=['x' * 100000, 'y'])",
        "'{0}{0}'.format('x' * 10000000)",
        "raise_exception('a' * 20000000)",
        "1.5 | round(10 ** 12, 'ceil')",
    ];
    refused(sources.iter().map(|source| format!("{{{{ {source} }}}}")));
}

#[test]
fn doubling_hits_the_limit() {
    let steps = [
        "ns.x ~ ns.x",
        "ns.x + ns.x",
        "'%s%s' % (ns.x, ns.x)",
        "ns.x * 2",
        "[ns.x, ns.x] | join",
        "ns.x | replace('a', 'aa')",
        "'{0}{0}'.format(ns.x)",
        "ns.x.replace('', 'a')",
        "ns.x | tojson",
        "(ns.x, ns.x) | string",
    ];
    let loops = steps.iter().map(|step| {
        format!("{{% set ns = namespace(x='a') %}}{{% for i in {OFTEN} %}}{{% set ns.x = {step} %}}{{% endfor %}}")
    });
    refused(loops);
    let captures = [
        "{% set y %}{{ ns.x }}{{ ns.x }}{% endset %}",
        "{% set y %}{% filter upper %}{{ ns.x }}{{ ns.x }}{% endfilter %}{% endset %}",
        "{% set y = m(ns.x) %}",
        "{% set y %}{% call m(ns.x) %}{% endcall %}{% endset %}",
    ];
    refused(captures.iter().map(|capture| {
        let m = "{% macro m(x) %}{{ x }}{{ x }}{{ caller() if caller }}{% endmacro %}{% set ns = namespace(x='a') %}";
        format!("{m}{{% for i in {OFTEN} %}}{capture}{{% set ns.x = y %}}{{% endfor %}}")
    }));
    let m = "{% macro m() %}{{ caller() }}{{ caller() }}{% endmacro %}";
    refused([format!("{m}{}a{}", "{% call m() %}".repeat(30), "{% endcall %}".repeat(30))]);
}

#[test]
fn work_counts_bytes() {
    let texts = [
        "| upper",
        "| sort",
        "| wordcount",
        "| striptags",
        "| tojson",
        "| wordwrap(1)",
        "| replace('b', 'c')",
        "| int",
        "== x",
        "~ 'a'",
        ".split('b')",
        ".strip('abc ')",
        ".istitle()",
        ".find('z')",
        "| list",
        "[::-1]",
        "| trim",
        "| truncate(1000000)",
        "| urlize",
        "| title",
    ];
    refused(texts.iter().map(|step| {
        format!("{{% set x = 'ab c ' * 400000 %}}{{% for i in {OFTEN} %}}{{% set y = x {step} %}}{{% endfor %}}")
    }));
    let lists = [
        "| sort",
        "| reverse | list",
        "| unique | list",
        "| max",
        "| sum",
        "| join",
        "| map('string') | list",
        "[::-1]",
        "+ x",
        "| tojson",
        "| string",
        "| batch(1) | list",
        "| slice(1000) | list",
        ".count(1)",
        "| pprint",
        "| select('odd') | list",
    ];
    refused(lists.iter().map(|step| {
        format!("{{% set x = range(50000) | list %}}{{% for i in {OFTEN} %}}{{% set y = x {step} %}}{{% endfor %}}")
    }));
    refused([format!("{{% for i in {OFTEN} %}}{{% for j in {OFTEN} %}}{{% endfor %}}{{% endfor %}}")]);
}

#[test]
fn value_nesting_is_limited() {
    let wrap = |value: &str, of: &str, times: usize| {
        format!(
            "{{% set ns = namespace(x={value}) %}}{{% for i in range({times}) %}}{{% set ns.x = {of} %}}{{% endfor %}}"
        )
    };
    let deep = ["[ns.x]", "(ns.x,)", "{'a': ns.x}", "cycler(ns.x)", "[ns.x] | map('list')", "dict(a=ns.x).items()"];
    refused(deep.map(|of| wrap("[]", of, 100_000)));
    refused([wrap("0", "ns.x", 1)
        + &format!(
            "{{% for i in {OFTEN} %}}{{% for y in [ns.x] %}}{{% set ns.x = loop %}}{{% endfor %}}{{% endfor %}}"
        )]);
    // Not deep, but with more ways through than there is time for.
    for end in ["{{ ns.x }}", "{{ ns.x | tojson }}", "{{ ns.x | pprint }}"] {
        refused([wrap("[1]", "[ns.x, ns.x]", 90) + end]);
    }
    refused([wrap("(1,)", "(ns.x, ns.x)", 90) + "{{ {ns.x: 1} }}"]);
    let itself = "{% set ns = namespace() %}{% set ns.x = [ns] %}";
    refused([format!("{itself}{{{{ ns }}}}"), format!("{itself}{{{{ ns.x | string }}}}")]);
}

#[test]
fn recursion_is_limited() {
    let deep = format!("{}m(){}", "[".repeat(60), "]".repeat(60));
    refused([
        "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}".to_owned(),
        "{% macro m() %}{% call m() %}{% endcall %}{{ caller }}{% endmacro %}{{ m() }}".to_owned(),
        "{% for x in [1] recursive %}{{ loop([1]) }}{% endfor %}".to_owned(),
        "{% macro a() %}{{ b() }}{% endmacro %}{% macro b() %}{{ a() }}{% endmacro %}{{ a() }}".to_owned(),
        "{% macro m(n) %}{% if n %}{{ m(n - 1) }}{{ m(n - 1) }}{% endif %}{% endmacro %}{{ m(60) }}".to_owned(),
        format!("{{% macro m() %}}{{{{ {deep} }}}}{{% endmacro %}}{{{{ m() }}}}"),
        "{{ [1] | map('map', 'map', 'map', 'map') | map('list') | list }}".to_owned(),
    ]);
}

#[test]
fn extreme_numbers_do_not_panic() {
    for source in [
        "-(-2 ** 127)",
        "(-2 ** 126 * 2) // -1",
        "(-2 ** 126 * 2) % -1",
        "(-2 ** 126 * 2) | abs",
        "'inf' | float | int",
        "range(-2 ** 62, 2 ** 62, 2 ** 61)[::-1] | list",
        "range(10)[::2 ** 62] | list",
        "'abc'[::2 ** 100]",
        "[1][2 ** 100]",
        "'abc'[-2 ** 126:2 ** 126]",
        "[1, 2].index(1, -2 ** 126)",
        "''[::-1]",
        "0 is divisibleby(0)",
        "1 | round(-10 ** 12)",
        "1.5 | round(-10 ** 12)",
        "1e308 * 10",
        "'%c' % -1",
        "'%*d' % (-5, 3)",
        "'a'.zfill(-1)",
        "[] | batch(-1)",
    ] {
        let _ = render(format!("{{{{ {source} }}}}"));
    }
}

mod random {
    use proptest::{prelude::*, sample::select};

    use super::render;

    const PIECES: [&str; 64] = [
        "{{ ",
        " }}",
        "{% ",
        " %}",
        "{%- ",
        " -%}",
        "{# ",
        " #}",
        "for x in ",
        "endfor",
        "if ",
        "else",
        "elif ",
        "endif",
        "set x = ",
        "set x",
        "endset",
        "macro m(a)",
        "endmacro",
        "call m()",
        "endcall",
        "filter upper",
        "endfilter",
        "with a = 1",
        "endwith",
        "raw",
        "endraw",
        "break",
        "m(",
        "loop",
        "loop(",
        ")",
        "(",
        "[",
        "]",
        "{",
        "}",
        "|",
        ".",
        ",",
        ":",
        "~",
        "+",
        "-",
        "*",
        "**",
        "//",
        "%",
        "'a'",
        "'%s{}'",
        "x",
        "messages",
        "1",
        "10",
        "2.5",
        "sort",
        "list",
        "join",
        "tojson",
        "items",
        "is ",
        "in ",
        "not ",
        "\n",
    ];
    const VALUES: [&str; 16] = [
        "x",
        "messages",
        "messages[0]",
        "'ab c'",
        "'%s-{}'",
        "7",
        "2.5",
        "-1",
        "none",
        "[3, 1, 2]",
        "{'a': 1}",
        "range(5)",
        "loop",
        "m",
        "(1, 'b')",
        "10 ** 9",
    ];
    const STEPS: [&str; 40] = [
        " | sort",
        " | list",
        " | join(x)",
        " | tojson",
        " | items",
        " | upper",
        " | batch(2)",
        " | map('upper')",
        " | first",
        " | wordwrap(3)",
        " | int",
        " | round(1)",
        " | truncate(5)",
        " | select",
        " | groupby('a')",
        " | slice(3)",
        " | pprint",
        " | urlencode",
        ".split()",
        ".items()",
        ".find('b', -1)",
        ".format(x, 1)",
        ".title()",
        "[1:]",
        "[::-1]",
        "[x]",
        ".a",
        "(1)",
        " ~ x",
        " + x",
        " * x",
        " % x",
        " // 2",
        " ** 3",
        " in x",
        " < x",
        " == x",
        " is iterable",
        " and x",
        " if x",
    ];

    fn expression() -> impl Strategy<Value = String> {
        let steps = prop::collection::vec(select(&STEPS[..]), 0..6);
        (select(&VALUES[..]), steps).prop_map(|(value, steps)| value.to_owned() + &steps.concat())
    }

    fn statement() -> impl Strategy<Value = String> {
        let print = expression().prop_map(|value| format!("{{{{ {value} }}}}"));
        print.prop_recursive(4, 40, 4, |inner| {
            let body = prop::collection::vec(inner, 1..4).prop_map(|parts| parts.concat());
            (expression(), body, 0..6).prop_map(|(value, body, kind)| match kind {
                0 => format!("{{% for x in {value} %}}{body}{{% endfor %}}"),
                1 => format!("{{% if {value} %}}{body}{{% endif %}}"),
                2 => format!("{{% set x %}}{body}{{% endset %}}"),
                3 => format!("{{% macro m(a) %}}{body}{{% endmacro %}}{{{{ m({value}) }}}}"),
                4 => format!("{{% set x = {value} %}}{body}"),
                _ => format!("{{% for x in {value} recursive %}}{{{{ loop(x) }}}}{body}{{% endfor %}}"),
            })
        })
    }

    proptest! {
        #[test]
        fn no_template_panics(pieces in prop::collection::vec(select(&PIECES[..]), 0..40)) {
            let _ = render(pieces.concat());
        }

        #[test]
        fn no_expression_panics(statements in prop::collection::vec(statement(), 1..4)) {
            let _ = render(statements.concat());
        }
    }
}
