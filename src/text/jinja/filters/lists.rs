//! Filters of lists and dicts.

use super::super::{
    args::Args,
    attributes,
    budget::{Outcome, fail},
    compare,
    dict::DictBuilder,
    operators, strings, tests,
    text::Text,
    value::{Generator, List, Missing, Value, excerpt},
    vm::Vm,
};

fn nothing(hint: &'static str) -> Value {
    Value::Undefined(Missing::Hint(hint))
}

fn generator(vm: &Vm<'_>, items: Vec<Value>) -> Outcome<Value> {
    List::new(&vm.budget, items).map(Generator::value)
}

pub fn length(_: &mut Vm<'_>, value: Value, args: Args) -> Outcome<Value> {
    let [] = args.bind("len", [])?;
    Ok(Value::Int(value.len()? as i128))
}

pub fn default(vm: &mut Vm<'_>, value: Value, args: Args) -> Outcome<Value> {
    let [default, boolean] = args.bind("default", ["default_value", "boolean"])?;
    let is_boolean = boolean.is_some_and(|boolean| boolean.is_true());
    if !value.is_undefined() && (!is_boolean || value.is_true()) {
        return Ok(value);
    }
    default.map_or_else(|| vm.text(""), Ok)
}

pub fn attr(vm: &mut Vm<'_>, value: Value, args: Args) -> Outcome<Value> {
    let [name] = args.bind("attr", ["name"])?;
    let Value::Text(name) = Args::required(name, "attr", "name")? else {
        return fail("attribute name must be string");
    };
    match value {
        // A dict's items are no attributes.
        Value::Dict(_) => {
            let empty = Value::Dict(DictBuilder::new(&vm.budget)?.finish()?);
            match attributes::attribute(vm, &empty, &name)? {
                Value::Method(_) => attributes::attribute(vm, &value, &name),
                other => Ok(other),
            }
        }
        value => attributes::attribute(vm, &value, &name),
    }
}

pub fn list(vm: &mut Vm<'_>, value: Value, args: Args) -> Outcome<Value> {
    let [] = args.bind("list", [])?;
    value.items(&vm.budget).map(Value::List)
}

pub fn items(vm: &mut Vm<'_>, value: Value, args: Args) -> Outcome<Value> {
    let [] = args.bind("items", [])?;
    match value {
        Value::Undefined(_) => generator(vm, Vec::new()),
        Value::Dict(dict) => {
            let view = Value::View(super::super::value::View::Items, dict);
            view.items(&vm.budget).map(Generator::value)
        }
        _ => fail("Can only get item pairs from a mapping."),
    }
}

pub fn first(vm: &mut Vm<'_>, value: Value, args: Args) -> Outcome<Value> {
    let [] = args.bind("first", [])?;
    let first = match &value {
        Value::Generator(generator) => generator.next(),
        Value::Text(text) => match text.chars().next() {
            Some(c) => Some(Value::Text(text.slice(0..c.len_utf8())?)),
            None => None,
        },
        other => other.items(&vm.budget)?.first().cloned(),
    };
    Ok(first.unwrap_or_else(|| nothing("No first item, sequence was empty.")))
}

pub fn last(vm: &mut Vm<'_>, value: Value, args: Args) -> Outcome<Value> {
    let [] = args.bind("last", [])?;
    let last = match &value {
        Value::Generator(_) => return fail("'generator' object is not reversible"),
        Value::Text(text) => match text.chars().next_back() {
            Some(c) => Some(Value::Text(text.slice(text.len() - c.len_utf8()..text.len())?)),
            None => None,
        },
        other => other.items(&vm.budget)?.last().cloned(),
    };
    Ok(last.unwrap_or_else(|| nothing("No last item, sequence was empty.")))
}

/// Some item, which is not the same each time.
pub fn random(vm: &mut Vm<'_>, value: Value, args: Args) -> Outcome<Value> {
    use std::hash::{BuildHasher, RandomState};
    let [] = args.bind("random", [])?;
    let items = value.items(&vm.budget)?;
    if items.is_empty() {
        return Ok(nothing("No random item, sequence was empty."));
    }
    let random = RandomState::new().hash_one(items.len()) as usize;
    Ok(items[random % items.len()].clone())
}

pub fn reverse(vm: &mut Vm<'_>, value: Value, args: Args) -> Outcome<Value> {
    let [] = args.bind("reverse", [])?;
    if let Value::Text(_) = value {
        return attributes::slice(vm, &value, &[Value::None, Value::None, Value::Int(-1)]);
    }
    let items = value.items(&vm.budget)?;
    let reversed = List::new(&vm.budget, items.iter().rev().cloned().collect())?;
    Ok(if matches!(value, Value::Generator(_)) { Value::List(reversed) } else { Generator::value(reversed) })
}

/// Items with their sort keys: the value of an attribute if there is one, in lower case unless case matters.
fn keyed(
    vm: &mut Vm<'_>,
    value: &Value,
    attribute: Option<&Value>,
    case_sensitive: bool,
) -> Outcome<Vec<(Value, Value)>> {
    let mut keyed = Vec::new();
    for item in value.items(&vm.budget)?.iter() {
        let key = match attribute {
            Some(path) => attributes::path(vm, item, path)?,
            None => item.clone(),
        };
        keyed.push((without_case(key, case_sensitive)?, item.clone()));
    }
    Ok(keyed)
}

fn without_case(key: Value, case_sensitive: bool) -> Outcome<Value> {
    match key {
        Value::Text(text) if !case_sensitive => strings::map_case(&text, "lower").map(Value::Text),
        other => Ok(other),
    }
}

fn flag(value: Option<Value>) -> bool {
    value.is_some_and(|value| value.is_true())
}

pub fn sort(vm: &mut Vm<'_>, value: Value, args: Args) -> Outcome<Value> {
    let [reverse, case_sensitive, attribute] = args.bind("sort", ["reverse", "case_sensitive", "attribute"])?;
    let case_sensitive = flag(case_sensitive);
    let paths: Vec<Value> = match &attribute {
        Some(Value::Text(names)) => {
            names.split(',').map(|name| names.slice_of(name).map(Value::Text)).collect::<Outcome<_>>()?
        }
        other => other.iter().cloned().collect(),
    };
    let keyed = match &paths[..] {
        [] => keyed(vm, &value, None, case_sensitive)?,
        [path] => keyed(vm, &value, Some(path), case_sensitive)?,
        paths => {
            let mut keyed = Vec::new();
            for item in value.items(&vm.budget)?.iter() {
                let mut keys = Vec::new();
                for path in paths {
                    keys.push(without_case(attributes::path(vm, item, path)?, case_sensitive)?);
                }
                keyed.push((vm.list(keys)?, item.clone()));
            }
            keyed
        }
    };
    let sorted = compare::sort(&vm.budget, keyed, flag(reverse))?;
    vm.list(sorted)
}

pub fn unique(vm: &mut Vm<'_>, value: Value, args: Args) -> Outcome<Value> {
    let [case_sensitive, attribute] = args.bind("unique", ["case_sensitive", "attribute"])?;
    let (mut seen, mut items) = (DictBuilder::new(&vm.budget)?, Vec::new());
    for (key, item) in keyed(vm, &value, attribute.as_ref(), flag(case_sensitive))? {
        if seen.insert(key, Value::None)? {
            items.push(item);
        }
    }
    generator(vm, items)
}

fn extreme(vm: &mut Vm<'_>, value: &Value, args: Args, is_max: bool) -> Outcome<Value> {
    use std::cmp::Ordering;
    let (name, operator) = if is_max { ("max", ">") } else { ("min", "<") };
    let [case_sensitive, attribute] = args.bind(name, ["case_sensitive", "attribute"])?;
    let mut keyed = keyed(vm, value, attribute.as_ref(), flag(case_sensitive))?.into_iter();
    let Some(mut found) = keyed.next() else { return Ok(nothing("No aggregated item, sequence was empty.")) };
    for item in keyed {
        let wanted = if is_max { Ordering::Greater } else { Ordering::Less };
        if compare::order(&vm.budget, &item.0, &found.0, operator)? == Some(wanted) {
            found = item;
        }
    }
    Ok(found.1)
}

pub fn max(vm: &mut Vm<'_>, value: Value, args: Args) -> Outcome<Value> {
    extreme(vm, &value, args, true)
}

pub fn min(vm: &mut Vm<'_>, value: Value, args: Args) -> Outcome<Value> {
    extreme(vm, &value, args, false)
}

pub fn sum(vm: &mut Vm<'_>, value: Value, args: Args) -> Outcome<Value> {
    let [attribute, start] = args.bind("sum", ["attribute", "start"])?;
    let mut total = start.unwrap_or(Value::Int(0));
    if let Value::Text(_) = total {
        return fail("sum() can't sum strings [use ''.join(seq) instead]");
    }
    let attribute = attribute.filter(|attribute| !matches!(attribute, Value::None));
    for item in value.items(&vm.budget)?.iter() {
        let item = match &attribute {
            Some(path) => attributes::path(vm, item, path)?,
            None => item.clone(),
        };
        total = operators::binary(vm, "+", total, item)?;
    }
    Ok(total)
}

pub fn dictsort(vm: &mut Vm<'_>, value: Value, args: Args) -> Outcome<Value> {
    let [case_sensitive, by, reverse] = args.bind("dictsort", ["case_sensitive", "by", "reverse"])?;
    let case_sensitive = flag(case_sensitive);
    let by_value = match &by {
        None => false,
        Some(Value::Text(by)) if &**by == "key" => false,
        Some(Value::Text(by)) if &**by == "value" => true,
        Some(_) => return fail("You can only sort by either \"key\" or \"value\""),
    };
    value.check_defined()?;
    let Value::Dict(dict) = &value else {
        return fail(format!("'{}' object has no attribute 'items'", value.type_name()));
    };
    let mut keyed = Vec::new();
    for (key, value) in dict.iter() {
        let sorted_by = without_case(if by_value { value.clone() } else { key.clone() }, case_sensitive)?;
        keyed.push((sorted_by, Value::tuple(&vm.budget, vec![key.clone(), value.clone()])?));
    }
    let sorted = compare::sort(&vm.budget, keyed, flag(reverse))?;
    vm.list(sorted)
}

pub fn groupby(vm: &mut Vm<'_>, value: Value, args: Args) -> Outcome<Value> {
    let [attribute, default, case_sensitive] = args.bind("groupby", ["attribute", "default", "case_sensitive"])?;
    let path = Args::required(attribute, "groupby", "attribute")?;
    let case_sensitive = flag(case_sensitive);
    let mut keyed = Vec::new();
    for item in value.items(&vm.budget)?.iter() {
        let key = match (attributes::path(vm, item, &path)?, &default) {
            (Value::Undefined(_), Some(default)) if !matches!(default, Value::None) => default.clone(),
            (key, _) => key,
        };
        let sorted_by = without_case(key.clone(), case_sensitive)?;
        let entry = Value::tuple(&vm.budget, vec![sorted_by.clone(), key, item.clone()])?;
        keyed.push((sorted_by, entry));
    }
    let mut groups: Vec<(Value, Value, Vec<Value>)> = Vec::new();
    for entry in compare::sort(&vm.budget, keyed, false)? {
        let Value::Tuple(entry) = entry else { continue };
        let [sorted_by, key, item] = &entry[..] else { continue };
        match groups.last_mut() {
            Some((last, _, items)) if compare::equal(&vm.budget, last, sorted_by)? => items.push(item.clone()),
            _ => groups.push((sorted_by.clone(), key.clone(), vec![item.clone()])),
        }
    }
    let mut tuples = Vec::new();
    for (_, key, items) in groups {
        let items = vec![key, vm.list(items)?];
        tuples.push(Value::Tuple(List::with_fields(&vm.budget, items, &["grouper", "list"])?));
    }
    vm.list(tuples)
}

/// A number of items above 0.
fn count(value: Option<Value>, name: &str) -> Outcome<usize> {
    let value = Args::required(value, name, "linecount")?;
    match value.as_int().map(usize::try_from) {
        Some(Ok(count)) if count > 0 => Ok(count),
        _ => fail(format!("{name} needs a number above 0")),
    }
}

/// Refuses more items than there can be, before they are made.
fn check_items(vm: &Vm<'_>, items: usize) -> Outcome<()> {
    vm.budget.work(items)?;
    vm.budget.hold(items.saturating_mul(size_of::<Value>())).map(drop)
}

pub fn batch(vm: &mut Vm<'_>, value: Value, args: Args) -> Outcome<Value> {
    let [line, fill] = args.bind("batch", ["linecount", "fill_with"])?;
    let line = count(line, "batch")?;
    let mut rows = Vec::new();
    for row in value.items(&vm.budget)?.chunks(line) {
        let mut row = row.to_vec();
        if let Some(fill) = fill.as_ref().filter(|fill| !matches!(fill, Value::None)) {
            check_items(vm, line)?;
            row.resize(line, fill.clone());
        }
        rows.push(vm.list(row)?);
    }
    generator(vm, rows)
}

pub fn slice(vm: &mut Vm<'_>, value: Value, args: Args) -> Outcome<Value> {
    let [slices, fill] = args.bind("slice", ["slices", "fill_with"])?;
    let slices = count(slices, "slice")?;
    // A list takes much more than an item.
    check_items(vm, slices.saturating_mul(8))?;
    let items = value.items(&vm.budget)?;
    let (each, more) = (items.len() / slices, items.len() % slices);
    let (mut rest, mut columns) = (&items[..], Vec::new());
    for number in 0..slices {
        let (column, after) = rest.split_at(each + usize::from(number < more));
        let mut column = column.to_vec();
        if number >= more && !matches!(fill, None | Some(Value::None)) {
            column.extend(fill.clone());
        }
        columns.push(vm.list(column)?);
        rest = after;
    }
    generator(vm, columns)
}

pub fn map(vm: &mut Vm<'_>, value: Value, mut args: Args) -> Outcome<Value> {
    let mut mapped = Vec::new();
    if !value.is_true() {
        return generator(vm, mapped);
    }
    if args.positional.is_empty() && args.keywords.iter().any(|(name, _)| &**name == "attribute") {
        let [attribute, default] = args.bind("map", ["attribute", "default"])?;
        let path = attribute.unwrap_or(Value::None);
        for item in value.items(&vm.budget)?.iter() {
            mapped.push(match (attributes::path(vm, item, &path)?, &default) {
                (Value::Undefined(_), Some(default)) if !matches!(default, Value::None) => default.clone(),
                (found, _) => found,
            });
        }
        return generator(vm, mapped);
    }
    if args.positional.is_empty() {
        return fail("map requires a filter argument");
    }
    let Value::Text(name) = args.positional.remove(0) else { return fail("map requires the name of a filter") };
    for item in value.items(&vm.budget)?.iter() {
        let args = copied(vm, &args)?;
        vm.enter()?;
        mapped.push(super::apply(vm, &name, item.clone(), args)?);
        vm.leave();
    }
    generator(vm, mapped)
}

fn copied(vm: &Vm<'_>, args: &Args) -> Outcome<Args> {
    vm.budget.work(args.positional.len() + args.keywords.len())?;
    Ok(Args { positional: args.positional.clone(), keywords: args.keywords.clone() })
}

/// Items that pass a test, or do not, perhaps of one of their attributes.
fn chosen(vm: &mut Vm<'_>, value: &Value, mut args: Args, wanted: bool, of_attribute: bool) -> Outcome<Value> {
    let mut items = Vec::new();
    if !value.is_true() {
        return generator(vm, items);
    }
    let next = |args: &mut Args| (!args.positional.is_empty()).then(|| args.positional.remove(0));
    let path = if of_attribute { next(&mut args) } else { None };
    if of_attribute && path.is_none() {
        return fail("Missing parameter for attribute name");
    }
    let test = match next(&mut args) {
        None => None,
        Some(Value::Text(name)) => Some(name),
        Some(_) => return fail("the name of a test is needed"),
    };
    for item in value.items(&vm.budget)?.iter() {
        let tested = match &path {
            Some(path) => attributes::path(vm, item, path)?,
            None => item.clone(),
        };
        let passes = match &test {
            Some(name) => test_passes(vm, name, tested, &args)?,
            None => tested.is_true(),
        };
        if passes == wanted {
            items.push(item.clone());
        }
    }
    generator(vm, items)
}

fn test_passes(vm: &mut Vm<'_>, name: &Text, value: Value, args: &Args) -> Outcome<bool> {
    if !tests::is_test(name) {
        return fail(format!("No test named '{}'.", excerpt(name)));
    }
    let args = copied(vm, args)?;
    tests::apply(vm, name, value, args)
}

pub fn select(vm: &mut Vm<'_>, value: Value, args: Args) -> Outcome<Value> {
    chosen(vm, &value, args, true, false)
}

pub fn reject(vm: &mut Vm<'_>, value: Value, args: Args) -> Outcome<Value> {
    chosen(vm, &value, args, false, false)
}

pub fn selectattr(vm: &mut Vm<'_>, value: Value, args: Args) -> Outcome<Value> {
    chosen(vm, &value, args, true, true)
}

pub fn rejectattr(vm: &mut Vm<'_>, value: Value, args: Args) -> Outcome<Value> {
    chosen(vm, &value, args, false, true)
}
