//! Loops, and their `loop` variable.

use std::{
    cell::{Cell, RefCell},
    collections::VecDeque,
    rc::Rc,
};

use super::{
    args::Args,
    ast::LOOP,
    budget::{Outcome, fail},
    text::Text,
    value::{List, Missing, Value},
    vm::{Flow, Vm},
};

/// Where a loop is.
pub struct LoopState {
    node: usize,
    /// The scope around the loop.
    scope: usize,
    items: List,
    is_filtered: bool,
    /// The first item that no one has asked for.
    next: Cell<usize>,
    /// Items that the loop's condition has let through before their turn.
    pending: RefCell<VecDeque<Value>>,
    index: Cell<usize>,
    current: RefCell<Option<Value>>,
    before: RefCell<Option<Value>>,
    /// How many recursive loops are around.
    level: usize,
}

const ATTRIBUTES: [&str; 13] = [
    "index",
    "index0",
    "revindex",
    "revindex0",
    "first",
    "last",
    "length",
    "depth",
    "depth0",
    "previtem",
    "nextitem",
    "cycle",
    "changed",
];

impl LoopState {
    pub fn items(&self) -> &List {
        &self.items
    }

    pub fn is_filtered(&self) -> bool {
        self.is_filtered
    }

    pub fn depth(&self) -> usize {
        self.items.depth() + 1
    }
}

impl<'t> Vm<'t> {
    /// Runs a loop's body for each item, or its other body if there are none.
    pub fn run_loop(&mut self, node: usize) -> Outcome<()> {
        let template = self.template;
        let items = self.eval(&template.loops[node].items)?;
        self.run_loop_over(node, &items, self.scope(), 0)
    }

    fn run_loop_over(&mut self, node: usize, items: &Value, scope: usize, level: usize) -> Outcome<()> {
        let template = self.template;
        let definition = &template.loops[node];
        let state = Rc::new(LoopState {
            node,
            scope,
            items: items.items(&self.budget)?,
            is_filtered: definition.condition.is_some(),
            next: Cell::new(0),
            pending: RefCell::default(),
            index: Cell::new(0),
            current: RefCell::default(),
            before: RefCell::default(),
            level,
        });
        let _held = self.budget.hold(size_of::<LoopState>())?;
        // A list that holds the loop of its own items is nested.
        if state.depth() > super::budget::MAX_VALUE_DEPTH {
            return fail("a loop is nested too deep");
        }
        let (mut flow, mut any_ended) = (Flow::On, false);
        while flow != Flow::Break
            && let Some(item) = self.next_item(&state)?
        {
            flow = self.scoped(scope, |vm| {
                vm.assign(&definition.target, item)?;
                vm.store(LOOP, Value::Loop(state.clone()))?;
                vm.run(&definition.body)
            })?;
            any_ended |= flow == Flow::On;
        }
        self.changed.remove(&address(&state));
        // Jinja's loops have run once a turn has come to its end.
        if !any_ended {
            self.scoped(scope, |vm| vm.run(&definition.otherwise))?;
        }
        Ok(())
    }

    /// Begins the loop's next turn.
    fn next_item(&mut self, state: &Rc<LoopState>) -> Outcome<Option<Value>> {
        let pending = state.pending.borrow_mut().pop_front();
        let item = match pending {
            Some(item) => Some(item),
            None => self.fetch(state)?,
        };
        if let Some(item) = &item {
            state.index.set(state.index.get() + 1);
            *state.before.borrow_mut() = state.current.borrow_mut().replace(item.clone());
        }
        Ok(item)
    }

    /// The next item that the loop's condition lets through.
    fn fetch(&mut self, state: &Rc<LoopState>) -> Outcome<Option<Value>> {
        let template = self.template;
        let definition = &template.loops[state.node];
        while let Some(item) = state.items.get(state.next.get()).cloned() {
            self.budget.work(1)?;
            state.next.set(state.next.get() + 1);
            let Some(condition) = &definition.condition else { return Ok(Some(item)) };
            let passes = self.scoped(state.scope, |vm| {
                vm.assign(&definition.target, item.clone())?;
                vm.eval(condition).map(|value| value.is_true())
            })?;
            if passes {
                return Ok(Some(item));
            }
        }
        Ok(None)
    }

    /// The item of the next turn.
    fn peek(&mut self, state: &Rc<LoopState>) -> Outcome<Option<Value>> {
        let first = state.pending.borrow().front().cloned();
        if first.is_some() {
            return Ok(first);
        }
        let item = self.fetch(state)?;
        state.pending.borrow_mut().extend(item.clone());
        Ok(item)
    }

    fn loop_length(&mut self, state: &Rc<LoopState>) -> Outcome<usize> {
        if !state.is_filtered {
            return Ok(state.items.len());
        }
        while let Some(item) = self.fetch(state)? {
            let _ = self.budget.hold(size_of::<Value>())?;
            state.pending.borrow_mut().push_back(item);
        }
        Ok(state.index.get() + state.pending.borrow().len())
    }

    /// An attribute of `loop`, if it has one of that name.
    pub fn loop_attribute(&mut self, state: &Rc<LoopState>, name: &Text) -> Outcome<Option<Value>> {
        if !ATTRIBUTES.contains(&&**name) {
            return Ok(None);
        }
        let number = |number: usize| Value::Int(number as i128);
        let index = state.index.get();
        Ok(Some(match &**name {
            "index" => number(index),
            "index0" => number(index.saturating_sub(1)),
            "revindex" => number((self.loop_length(state)? + 1).saturating_sub(index)),
            "revindex0" => number(self.loop_length(state)?.saturating_sub(index)),
            "first" => Value::Bool(index == 1),
            "last" => Value::Bool(self.peek(state)?.is_none()),
            "length" => number(self.loop_length(state)?),
            "depth" => number(state.level + 1),
            "depth0" => number(state.level),
            "previtem" => {
                let before = state.before.borrow().clone();
                before.unwrap_or(Value::Undefined(Missing::Hint("there is no previous item")))
            }
            "nextitem" => self.peek(state)?.unwrap_or(Value::Undefined(Missing::Hint("there is no next item"))),
            _ => Value::Method(Rc::new((Value::Loop(state.clone()), name.clone()))),
        }))
    }

    /// Calls a method of `loop`.
    pub fn loop_method(&mut self, state: &Rc<LoopState>, name: &str, args: Args) -> Outcome<Value> {
        let items = args.positional_only(name)?;
        match name {
            "cycle" if items.is_empty() => fail("no items for cycling given"),
            "cycle" => Ok(items[state.index.get().saturating_sub(1) % items.len()].clone()),
            _ => {
                let items = List::new(&self.budget, items)?;
                let (address, budget) = (address(state), self.budget.clone());
                let (new, old) = (Value::Tuple(items.clone()), self.changed.get(&address).cloned());
                let is_same = match old {
                    Some(old) => super::compare::equal(&budget, &Value::Tuple(old), &new)?,
                    None => false,
                };
                self.changed.insert(address, items);
                Ok(Value::Bool(!is_same))
            }
        }
    }

    /// Runs the body of a recursive loop for the items of a value.
    pub fn call_loop(&mut self, state: &Rc<LoopState>, args: Args) -> Outcome<Value> {
        let template = self.template;
        if !template.loops[state.node].is_recursive {
            return fail("The loop must have the 'recursive' marker to be called recursively.");
        }
        let [items] = args.bind("loop", ["iterable"])?;
        let items = Args::required(items, "loop", "iterable")?;
        self.enter()?;
        let text = self.captured(|vm| vm.run_loop_over(state.node, &items, state.scope, state.level + 1))?;
        self.leave();
        Ok(Value::Text(text))
    }

    /// How a loop is written.
    pub fn describe_loop(state: &LoopState) -> String {
        format!("<LoopContext {}/{}>", state.index.get(), state.items.len())
    }
}

fn address(state: &Rc<LoopState>) -> usize {
    Rc::as_ptr(state) as usize
}
