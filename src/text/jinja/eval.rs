//! Evaluates expressions.

use std::cmp::Ordering;

use super::{
    args::Args,
    ast::{Expr, Postfix},
    attributes,
    budget::{Outcome, fail},
    compare,
    dict::DictBuilder,
    filters, globals, methods,
    number::{self, PyNumber},
    operators, repr, tests,
    text::{Text, TextBuilder},
    value::{Missing, Value},
    vm::Vm,
};

impl<'t> Vm<'t> {
    pub fn eval(&mut self, expr: &'t Expr) -> Outcome<Value> {
        match expr {
            // A leaf needs no level of nesting.
            Expr::Constant(id) => Ok(self.constant(*id)),
            Expr::Name(name) => self.load(*name),
            _ => {
                self.enter()?;
                let value = self.eval_parts(expr)?;
                self.leave();
                Ok(value)
            }
        }
    }

    fn eval_parts(&mut self, expr: &'t Expr) -> Outcome<Value> {
        match expr {
            Expr::Constant(id) => Ok(self.constant(*id)),
            Expr::Name(name) => self.load(*name),
            Expr::Concat(parts) => self.concat(parts),
            Expr::Arithmetic(first, rest) => {
                let mut value = self.eval(first)?;
                for (operator, expr) in rest {
                    let right = self.eval(expr)?;
                    value = operators::binary(self, operator, value, right)?;
                }
                Ok(value)
            }
            Expr::Signed(signs, operand) => {
                let operand = self.eval(operand)?;
                self.budget.work(signs.len())?;
                sign(signs, &operand)
            }
            Expr::Not(count, operand) => Ok(Value::Bool(self.eval(operand)?.is_true() == (count % 2 == 0))),
            Expr::And(parts) => self.first_that(parts, false),
            Expr::Or(parts) => self.first_that(parts, true),
            Expr::Compare(first, rest) => self.compare(first, rest),
            Expr::If(cases, otherwise) => {
                for (value, condition) in cases {
                    if self.eval(condition)?.is_true() {
                        return self.eval(value);
                    }
                }
                match otherwise {
                    Some(value) => self.eval(value),
                    None => Ok(Value::Undefined(Missing::Hint(
                        "the inline if-expression evaluated to false and no else section was defined.",
                    ))),
                }
            }
            Expr::List(items) => {
                let items = self.all(items)?;
                self.list(items)
            }
            Expr::Tuple(items) => {
                let items = self.all(items)?;
                Value::tuple(&self.budget, items)
            }
            Expr::Dict(entries) => self.dict(entries),
            Expr::Postfix(base, steps) => self.steps(base, steps),
        }
    }

    fn all(&mut self, exprs: &'t [Expr]) -> Outcome<Vec<Value>> {
        exprs.iter().map(|expr| self.eval(expr)).collect()
    }

    fn concat(&mut self, parts: &'t [Expr]) -> Outcome<Value> {
        let mut out = TextBuilder::new(&self.budget)?;
        for part in parts {
            let value = self.printed(part)?;
            repr::write_str(self, &mut out, &value)?;
        }
        out.finish().map(Value::Text)
    }

    /// The value of an expression that is written down. A number is the template's own if it wrote it, or counts
    /// iterations of a loop or in a namespace; any other may be from outside.
    pub fn printed(&mut self, expr: &'t Expr) -> Outcome<Value> {
        let value = self.eval(expr)?;
        if !matches!(value, Value::Int(_) | Value::Float(_)) || self.is_own_number(expr)? {
            return Ok(value);
        }
        let text = repr::to_text(self, &value)?;
        Text::from_value(&self.budget, &*text).map(Value::Text)
    }

    fn is_own_number(&mut self, expr: &'t Expr) -> Outcome<bool> {
        self.budget.work(1)?;
        match expr {
            Expr::Constant(_) => Ok(true),
            Expr::Signed(_, operand) => self.is_own_number(operand),
            Expr::Arithmetic(first, rest) => {
                for expr in [&**first].into_iter().chain(rest.iter().map(|(_, expr)| expr)) {
                    if !self.is_own_number(expr)? {
                        return Ok(false);
                    }
                }
                Ok(true)
            }
            Expr::Postfix(base, _) => match **base {
                Expr::Name(name) => Ok(matches!(self.load(name)?, Value::Loop(_) | Value::Namespace(_))),
                _ => Ok(false),
            },
            _ => Ok(false),
        }
    }

    /// The first value that is as true, or the last one.
    fn first_that(&mut self, parts: &'t [Expr], is_true: bool) -> Outcome<Value> {
        let mut value = Value::None;
        for part in parts {
            value = self.eval(part)?;
            if value.is_true() == is_true {
                break;
            }
        }
        Ok(value)
    }

    fn compare(&mut self, first: &'t Expr, rest: &'t [(&'static str, Expr)]) -> Outcome<Value> {
        let mut left = self.eval(first)?;
        for (operator, expr) in rest {
            let right = self.eval(expr)?;
            if !compares(self, operator, &left, &right)? {
                return Ok(Value::Bool(false));
            }
            left = right;
        }
        Ok(Value::Bool(true))
    }

    fn dict(&mut self, entries: &'t [(Expr, Expr)]) -> Outcome<Value> {
        let mut dict = DictBuilder::new(&self.budget)?;
        for (key, value) in entries {
            let key = self.eval(key)?;
            let value = self.eval(value)?;
            dict.insert(key, value)?;
        }
        dict.finish().map(Value::Dict)
    }

    fn steps(&mut self, base: &'t Expr, steps: &'t [Postfix]) -> Outcome<Value> {
        let mut value = self.eval(base)?;
        let mut steps = steps.iter();
        while let Some(step) = steps.next() {
            self.budget.work(1)?;
            value = match step {
                Postfix::Attribute(name) => {
                    let name = self.constant_text(*name)?;
                    match steps.as_slice().first() {
                        // Most methods are called at once.
                        Some(Postfix::Call(arguments)) if methods::is_method(&value, &name) => {
                            steps.next();
                            let args = self.arguments(arguments)?;
                            methods::call(self, &value, &name, args)?
                        }
                        _ => attributes::attribute(self, &value, &name)?,
                    }
                }
                other => self.step(value, other)?,
            };
        }
        Ok(value)
    }

    fn step(&mut self, value: Value, step: &'t Postfix) -> Outcome<Value> {
        match step {
            Postfix::Attribute(name) => {
                let name = self.constant_text(*name)?;
                attributes::attribute(self, &value, &name)
            }
            Postfix::Item(key) => {
                let key = self.eval(key)?;
                attributes::item(self, &value, &key)
            }
            Postfix::Slice(parts) => {
                let mut bounds = [Value::None, Value::None, Value::None];
                for (bound, part) in bounds.iter_mut().zip(parts.iter()) {
                    if let Some(part) = part {
                        *bound = self.eval(part)?;
                    }
                }
                attributes::slice(self, &value, &bounds)
            }
            Postfix::Call(arguments) => {
                let args = self.arguments(arguments)?;
                self.call(&value, args)
            }
            Postfix::Filter(filter) => {
                let args = self.arguments(&filter.arguments)?;
                filters::apply(self, &filter.name, value, args)
            }
            Postfix::Test { name, arguments, negated } => {
                let args = self.arguments(arguments)?;
                Ok(Value::Bool(tests::apply(self, name, value, args)? != *negated))
            }
        }
    }

    pub fn call(&mut self, function: &Value, args: Args) -> Outcome<Value> {
        match function {
            Value::Macro(called) => self.call_macro(*called, args),
            Value::Function(function) => globals::call(self, *function, args),
            Value::Method(method) => methods::call(self, &method.0, &method.1, args),
            Value::Loop(state) => self.call_loop(state, args),
            Value::Joiner(joiner) => {
                let [] = args.bind("joiner", [])?;
                if joiner.used.replace(true) { Ok(Value::Text(joiner.separator.clone())) } else { self.text("") }
            }
            other => {
                other.check_defined()?;
                fail(format!("'{}' object is not callable", other.type_name()))
            }
        }
    }
}

/// Applies signs, of which true ones are minus.
fn sign(signs: &[bool], operand: &Value) -> Outcome<Value> {
    operand.check_defined()?;
    let Some(number) = PyNumber::of(operand) else {
        return fail(format!("bad operand type for unary sign: '{}'", operand.type_name()));
    };
    let is_minus = signs.iter().filter(|is_minus| **is_minus).count() % 2 == 1;
    match number {
        PyNumber::Float(number) => Ok(Value::Float(if is_minus { -number } else { number })),
        PyNumber::Int(0) => Ok(Value::Int(0)),
        number if is_minus => number::arithmetic("-", PyNumber::Int(0), number).map(PyNumber::value),
        number => Ok(number.value()),
    }
}

/// `left operator right`
pub fn compares(vm: &mut Vm<'_>, operator: &str, left: &Value, right: &Value) -> Outcome<bool> {
    let budget = &vm.budget;
    match operator {
        "==" => return compare::equal(budget, left, right),
        "!=" => return compare::equal(budget, left, right).map(|equal| !equal),
        "in" => return compare::contains(budget, right, left),
        "not in" => return compare::contains(budget, right, left).map(|found| !found),
        _ => {}
    }
    let order = compare::order(budget, left, right, operator)?;
    Ok(order.is_some_and(|order| match operator {
        "<" => order == Ordering::Less,
        "<=" => order != Ordering::Greater,
        ">" => order == Ordering::Greater,
        _ => order != Ordering::Less,
    }))
}
