//! The filters of Jinja, and transformers' replacements for some of them.

mod lists;
mod numbers;
mod texts;
mod wrap;

use super::{
    args::Args,
    budget::{Outcome, fail},
    json,
    value::{Value, excerpt},
    vm::Vm,
};

type FilterFn = fn(&mut Vm<'_>, Value, Args) -> Outcome<Value>;

/// In the order of their names.
const FILTERS: [(&str, FilterFn); 54] = [
    ("abs", numbers::abs),
    ("attr", lists::attr),
    ("batch", lists::batch),
    ("capitalize", texts::capitalize),
    ("center", texts::center),
    ("count", lists::length),
    ("d", lists::default),
    ("default", lists::default),
    ("dictsort", lists::dictsort),
    ("e", texts::escape),
    ("escape", texts::escape),
    ("filesizeformat", numbers::filesizeformat),
    ("first", lists::first),
    ("float", numbers::float),
    ("forceescape", texts::forceescape),
    ("format", texts::format),
    ("groupby", lists::groupby),
    ("indent", texts::indent),
    ("int", numbers::int),
    ("items", lists::items),
    ("join", texts::join),
    ("last", lists::last),
    ("length", lists::length),
    ("list", lists::list),
    ("lower", texts::lower),
    ("map", lists::map),
    ("max", lists::max),
    ("min", lists::min),
    ("pprint", json::pretty),
    ("random", lists::random),
    ("reject", lists::reject),
    ("rejectattr", lists::rejectattr),
    ("replace", texts::replace),
    ("reverse", lists::reverse),
    ("round", numbers::round),
    ("safe", texts::safe),
    ("select", lists::select),
    ("selectattr", lists::selectattr),
    ("slice", lists::slice),
    ("sort", lists::sort),
    ("string", texts::string),
    ("striptags", texts::striptags),
    ("sum", lists::sum),
    ("title", texts::title),
    ("tojson", json::to_json),
    ("trim", texts::trim),
    ("truncate", wrap::truncate),
    ("unique", lists::unique),
    ("upper", texts::upper),
    ("urlencode", texts::urlencode),
    ("urlize", texts::urlize),
    ("wordcount", texts::wordcount),
    ("wordwrap", wrap::wordwrap),
    ("xmlattr", texts::xmlattr),
];

fn find(name: &str) -> Option<FilterFn> {
    FILTERS.binary_search_by_key(&name, |(name, _)| name).ok().map(|at| FILTERS[at].1)
}

pub fn is_filter(name: &str) -> bool {
    find(name).is_some()
}

/// `value | name(…)`
pub fn apply(vm: &mut Vm<'_>, name: &str, value: Value, args: Args) -> Outcome<Value> {
    vm.budget.work(1)?;
    match find(name) {
        Some(filter) => filter(vm, value, args),
        None => fail(format!("No filter named '{}'.", excerpt(name))),
    }
}
