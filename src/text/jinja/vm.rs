//! The state of one rendering, and how statements are run.

use std::collections::{BTreeMap, HashMap};

use chrono::NaiveDateTime;

use super::{
    ast::{AssignTarget, Body, Constant, Filter, Id, Statement},
    budget::{HeldMemory, MAX_CALL_DEPTH, Outcome, RenderBudget, fail},
    parser::Parsed,
    repr,
    text::{Text, TextBuilder},
    value::{List, MacroRef, Missing, Value, excerpt},
};

/// Memory that a scope or a namespace takes, and a variable in it.
const SCOPE_BYTES: usize = 64;
const VARIABLE_BYTES: usize = 96;

pub struct Vm<'t> {
    pub budget: RenderBudget,
    pub template: &'t Parsed,
    constants: Vec<Value>,
    /// The template's variables, by the numbers of their names.
    context: Vec<Option<Value>>,
    scopes: Vec<Scope>,
    /// The scope whose names are seen.
    scope: usize,
    namespaces: Vec<Namespace>,
    outputs: Vec<TextBuilder>,
    /// The last arguments of `loop.changed`, by the addresses of loops.
    pub changed: HashMap<usize, List>,
    depth: usize,
    line: u32,
    /// The time for `strftime_now`, if not now.
    pub now: Option<NaiveDateTime>,
}

struct Scope {
    variables: BTreeMap<Id, Value>,
    parent: Option<usize>,
    /// Whether a macro sees it, for which it stays.
    is_captured: bool,
    held: HeldMemory,
}

struct Namespace {
    values: Vec<(Text, Value)>,
    held: HeldMemory,
}

/// Where a body's end leads.
#[derive(Clone, Copy, PartialEq)]
pub enum Flow {
    On,
    Break,
    Continue,
}

impl<'t> Vm<'t> {
    pub fn new(template: &'t Parsed, budget: RenderBudget, context: Vec<Option<Value>>) -> Outcome<Self> {
        let constant = |constant: &Constant| {
            Ok(match constant {
                Constant::None => Value::None,
                Constant::Bool(value) => Value::Bool(*value),
                Constant::Int(number) => Value::Int(*number),
                Constant::Float(number) => Value::Float(*number),
                Constant::Text(text) => Value::text(&budget, &**text)?,
            })
        };
        Ok(Self {
            constants: template.constants.iter().map(constant).collect::<Outcome<_>>()?,
            scopes: vec![Scope {
                variables: BTreeMap::new(),
                parent: None,
                is_captured: false,
                held: budget.hold(SCOPE_BYTES)?,
            }],
            scope: 0,
            namespaces: Vec::new(),
            outputs: vec![TextBuilder::new(&budget)?],
            changed: HashMap::new(),
            depth: 0,
            line: 1,
            now: None,
            budget,
            template,
            context,
        })
    }

    /// Runs the whole template.
    pub fn render(&mut self) -> Outcome<Text> {
        let template = self.template;
        let rendered = self.run(&template.body).and_then(|_| match self.outputs.pop() {
            Some(out) => out.finish(),
            None => fail("nothing was written"),
        });
        rendered.map_err(|mut failure| {
            if !failure.raised {
                failure.reason = format!("line {}: {}", self.line, failure.reason);
            }
            failure
        })
    }

    /// Goes a level deeper into the template.
    pub fn enter(&mut self) -> Outcome<()> {
        self.depth += 1;
        if self.depth > MAX_CALL_DEPTH {
            return fail(format!("evaluation goes more than {MAX_CALL_DEPTH} deep"));
        }
        self.budget.work(1)
    }

    pub fn leave(&mut self) {
        self.depth -= 1;
    }

    pub fn constant(&self, id: Id) -> Value {
        self.constants.get(id).cloned().unwrap_or(Value::None)
    }

    pub fn constant_text(&self, id: Id) -> Outcome<Text> {
        match self.constants.get(id) {
            Some(Value::Text(text)) => Ok(text.clone()),
            _ => fail("a name is no text"),
        }
    }

    pub fn text(&self, text: impl Into<Box<str>>) -> Outcome<Value> {
        Value::text(&self.budget, text)
    }

    pub fn list(&self, items: Vec<Value>) -> Outcome<Value> {
        Value::list(&self.budget, items)
    }

    /// The value of a name.
    pub fn load(&mut self, name: Id) -> Outcome<Value> {
        let mut scope = Some(self.scope);
        while let Some(found) = scope.and_then(|scope| self.scopes.get(scope)) {
            self.budget.work(1)?;
            if let Some(value) = found.variables.get(&name) {
                return Ok(value.clone());
            }
            scope = found.parent;
        }
        if let Some(Some(value)) = self.context.get(name) {
            return Ok(value.clone());
        }
        let name = &self.template.names[name];
        match super::globals::function(name) {
            Some(function) => Ok(Value::Function(function)),
            None => Ok(Value::Undefined(Missing::Name(Text::new(&self.budget, excerpt(name))?))),
        }
    }

    /// Gives a name a value in the innermost scope.
    pub fn store(&mut self, name: Id, value: Value) -> Outcome<()> {
        let scope = &mut self.scopes[self.scope];
        if scope.variables.insert(name, value).is_none() {
            scope.held.grow(VARIABLE_BYTES)?;
        }
        Ok(())
    }

    /// Assigns a value to all that is in a target.
    pub fn assign(&mut self, target: &AssignTarget, value: Value) -> Outcome<()> {
        match target {
            AssignTarget::Name(name) => self.store(*name, value),
            AssignTarget::Attribute(name, attribute) => {
                let attribute = self.constant_text(*attribute)?;
                match self.load(*name)? {
                    Value::Namespace(namespace) => self.set_in_namespace(namespace, attribute, value),
                    _ => fail("cannot assign attribute on non-namespace object"),
                }
            }
            AssignTarget::Tuple(targets) => {
                let items = value.items(&self.budget)?;
                if items.len() != targets.len() {
                    let (found, expected) = (items.len(), targets.len());
                    return fail(format!("{found} values to unpack, expected {expected}"));
                }
                targets.iter().zip(items.iter()).try_for_each(|(target, item)| self.assign(target, item.clone()))
            }
        }
    }

    pub fn new_namespace(&mut self) -> Outcome<usize> {
        self.namespaces.push(Namespace { values: Vec::new(), held: self.budget.hold(SCOPE_BYTES)? });
        Ok(self.namespaces.len() - 1)
    }

    /// The content of a namespace.
    pub fn namespace(&self, number: usize) -> &[(Text, Value)] {
        self.namespaces.get(number).map_or(&[], |namespace| &namespace.values)
    }

    pub fn set_in_namespace(&mut self, number: usize, name: Text, value: Value) -> Outcome<()> {
        if name.starts_with('_') {
            return fail(format!(
                "Chat templates cannot store underscore-prefixed attributes on a namespace, but got '{}'",
                excerpt(&name)
            ));
        }
        let Some(namespace) = self.namespaces.get_mut(number) else { return fail("there is no such namespace") };
        self.budget.work(1 + namespace.values.len())?;
        self.budget.scan(name.len())?;
        match namespace.values.iter_mut().find(|(found, _)| *found == name) {
            Some((_, old)) => *old = value,
            None => {
                namespace.held.grow(VARIABLE_BYTES)?;
                namespace.values.push((name, value));
            }
        }
        Ok(())
    }

    pub fn scope(&self) -> usize {
        self.scope
    }

    /// Runs with a new scope in another one.
    pub fn scoped<T>(&mut self, parent: usize, run: impl FnOnce(&mut Self) -> Outcome<T>) -> Outcome<T> {
        if parent >= self.scopes.len() {
            return fail("the scope is no longer there");
        }
        let before = std::mem::replace(&mut self.scope, self.scopes.len());
        let held = self.budget.hold(SCOPE_BYTES)?;
        let scope = Scope { variables: BTreeMap::new(), parent: Some(parent), is_captured: false, held };
        self.scopes.push(scope);
        let result = run(self)?;
        let is_last = self.scope + 1 == self.scopes.len();
        if is_last && !self.scopes[self.scope].is_captured {
            self.scopes.pop();
        }
        self.scope = before;
        Ok(result)
    }

    /// A macro that sees the scopes around.
    pub fn capture(&mut self, index: usize) -> Value {
        let mut scope = Some(self.scope);
        while let Some(found) = scope.and_then(|scope| self.scopes.get_mut(scope)) {
            if found.is_captured {
                break;
            }
            found.is_captured = true;
            scope = found.parent;
        }
        Value::Macro(MacroRef { index, scope: self.scope })
    }

    /// The output of a body, captured.
    pub fn captured(&mut self, run: impl FnOnce(&mut Self) -> Outcome<()>) -> Outcome<Text> {
        self.outputs.push(TextBuilder::new(&self.budget)?);
        run(self)?;
        match self.outputs.pop() {
            Some(out) => out.finish(),
            None => fail("nothing was written"),
        }
    }

    /// Writes a value.
    pub fn write(&mut self, value: &Value) -> Outcome<()> {
        let Some(mut out) = self.outputs.pop() else { return fail("there is nothing to write to") };
        let written = repr::write_str(self, &mut out, value);
        self.outputs.push(out);
        written
    }

    pub fn run(&mut self, body: &'t Body) -> Outcome<Flow> {
        self.enter()?;
        for node in body {
            self.line = node.line;
            let flow = self.statement(&node.statement)?;
            if flow != Flow::On {
                self.leave();
                return Ok(flow);
            }
        }
        self.leave();
        Ok(Flow::On)
    }

    fn statement(&mut self, statement: &'t Statement) -> Outcome<Flow> {
        self.budget.work(1)?;
        match statement {
            Statement::Data(id) => {
                let data = self.constant(*id);
                self.write(&data)?;
            }
            Statement::Print(expr) => {
                let value = self.printed(expr)?;
                self.write(&value)?;
            }
            Statement::If(cases, otherwise) => {
                for (condition, body) in cases {
                    if self.eval(condition)?.is_true() {
                        return self.run(body);
                    }
                }
                return self.run(otherwise);
            }
            Statement::For(index) => self.run_loop(*index)?,
            Statement::Set(target, expr) => {
                let value = self.eval(expr)?;
                self.assign(target, value)?;
            }
            Statement::Block(index) => {
                let body = &self.template.macros[*index].body;
                return self.scoped(self.scope, |vm| vm.run(body));
            }
            Statement::Scope(body) => return self.scoped(self.scope, |vm| vm.run(body)),
            Statement::Break => return Ok(Flow::Break),
            Statement::Continue => return Ok(Flow::Continue),
            other => return self.block_statement(other),
        }
        Ok(Flow::On)
    }

    fn block_statement(&mut self, statement: &'t Statement) -> Outcome<Flow> {
        match statement {
            Statement::SetBlock(target, filters, body) => {
                let value = self.captured_body(body, filters)?;
                self.assign(target, value)?;
            }
            Statement::Filter(filters, body) => {
                let value = self.captured_body(body, filters)?;
                self.write(&value)?;
            }
            Statement::With(values, body) => {
                let outer = self.scope;
                return self.scoped(outer, |vm| {
                    let inner = vm.scope;
                    for (target, expr) in values {
                        vm.scope = outer;
                        let value = vm.eval(expr);
                        vm.scope = inner;
                        vm.assign(target, value?)?;
                    }
                    vm.run(body)
                });
            }
            Statement::Macro(name, index) => {
                let value = self.capture(*index);
                self.store(*name, value)?;
            }
            Statement::Call(function, arguments, index) => {
                let text = self.call_with_body(function, arguments, *index)?;
                self.write(&text)?;
            }
            Statement::Autoescape(escapes, body) => {
                if self.eval(escapes)?.is_true() {
                    return fail("autoescape is not supported");
                }
                return self.scoped(self.scope, |vm| vm.run(body));
            }
            _ => return fail("there are no other templates"),
        }
        Ok(Flow::On)
    }

    fn captured_body(&mut self, body: &'t Body, filters: &'t [Filter]) -> Outcome<Value> {
        let scope = self.scope;
        let text = self.captured(|vm| vm.scoped(scope, |vm| vm.run(body)).map(drop))?;
        filters.iter().try_fold(Value::Text(text), |value, filter| {
            let args = self.arguments(&filter.arguments)?;
            super::filters::apply(self, &filter.name, value, args)
        })
    }
}
