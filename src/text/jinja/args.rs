//! The arguments of a call, and macros' calls.

use super::{
    ast::{Arguments, CALLER, Expr, KWARGS, VARARGS},
    budget::{Outcome, fail},
    dict::DictBuilder,
    text::Text,
    value::{List, MacroRef, Missing, Value, excerpt},
    vm::Vm,
};

/// The arguments of a call.
#[derive(Default)]
pub struct Args {
    pub positional: Vec<Value>,
    pub keywords: Vec<(Text, Value)>,
}

impl Args {
    /// The arguments by their names, whether they were given by position or by name.
    pub fn bind<const N: usize>(self, function: &str, names: [&str; N]) -> Outcome<[Option<Value>; N]> {
        if self.positional.len() > N {
            let given = self.positional.len();
            return fail(format!("{function}() takes at most {N} arguments ({given} given)"));
        }
        let mut found = [const { None }; N];
        for (found, value) in found.iter_mut().zip(self.positional) {
            *found = Some(value);
        }
        for (name, value) in self.keywords {
            match names.iter().position(|known| *known == &*name) {
                Some(at) if found[at].is_none() => found[at] = Some(value),
                Some(_) => return fail(format!("{function}() got multiple values for argument '{}'", &*name)),
                None => return fail(format!("{function}() got an unexpected keyword argument '{}'", excerpt(&name))),
            }
        }
        Ok(found)
    }

    pub fn positional_only(self, function: &str) -> Outcome<Vec<Value>> {
        if self.keywords.is_empty() { Ok(self.positional) } else { fail(format!("{function}() takes no keywords")) }
    }

    pub fn required(value: Option<Value>, function: &str, name: &str) -> Outcome<Value> {
        value.map_or_else(|| fail(format!("{function}() missing a required argument: '{name}'")), Ok)
    }
}

impl<'t> Vm<'t> {
    pub fn arguments(&mut self, arguments: &'t Arguments) -> Outcome<Args> {
        let mut args = Args::default();
        for expr in &arguments.positional {
            args.positional.push(self.eval(expr)?);
        }
        for (name, expr) in &arguments.keywords {
            args.keywords.push((self.constant_text(*name)?, self.eval(expr)?));
        }
        if let Some(more) = &arguments.more {
            let more = self.eval(more)?.items(&self.budget)?;
            self.budget.work(more.len())?;
            args.positional.extend(more.iter().cloned());
        }
        if let Some(more) = &arguments.more_keywords {
            let Value::Dict(more) = self.eval(more)? else { return fail("argument after ** must be a mapping") };
            self.budget.work(more.len() * (1 + args.keywords.len()))?;
            for (name, value) in more.iter() {
                let Value::Text(name) = name else { return fail("keywords must be strings") };
                self.budget.scan(name.len())?;
                if args.keywords.iter().any(|(found, _)| found == name) {
                    return fail(format!("got multiple values for keyword argument '{}'", excerpt(name)));
                }
                args.keywords.push((name.clone(), value.clone()));
            }
        }
        Ok(args)
    }

    /// Calls a function with the body of a call block as its `caller`.
    pub fn call_with_body(&mut self, function: &'t Expr, arguments: &'t Arguments, body: usize) -> Outcome<Value> {
        let function = self.eval(function)?;
        let mut args = self.arguments(arguments)?;
        let caller = self.capture(body);
        args.keywords.push((Text::new(&self.budget, "caller")?, caller));
        self.call(&function, args)
    }

    /// Runs a macro; its output is the value.
    pub fn call_macro(&mut self, called: MacroRef, args: Args) -> Outcome<Value> {
        self.enter()?;
        let template = self.template;
        let definition = &template.macros[called.index];
        let text = self.captured(|vm| {
            vm.scoped(called.scope, |vm| {
                vm.bind_parameters(called, args)?;
                vm.run(&definition.body).map(drop)
            })
        })?;
        self.leave();
        Ok(Value::Text(text))
    }

    fn bind_parameters(&mut self, called: MacroRef, args: Args) -> Outcome<()> {
        let template = self.template;
        let definition = &template.macros[called.index];
        let Args { positional, mut keywords } = args;
        self.budget.work(definition.parameters.len() * (1 + keywords.len()))?;
        let mut positional = positional.into_iter();
        let mut takes_caller = definition.takes_caller;
        for (parameter, default) in &definition.parameters {
            let name = &template.names[*parameter];
            self.budget.scan(name.len())?;
            takes_caller &= *parameter != CALLER;
            let given = match positional.next() {
                Some(value) => Some(value),
                None => take(&mut keywords, name),
            };
            let value = match (given, default) {
                (Some(value), _) => value,
                (None, Some(default)) => self.eval(default)?,
                (None, None) => Value::Undefined(Missing::Hint("a parameter of the macro was not provided")),
            };
            self.store(*parameter, value)?;
        }
        if takes_caller {
            let caller = take(&mut keywords, "caller");
            let caller = caller.unwrap_or(Value::Undefined(Missing::Hint("No caller defined")));
            self.store(CALLER, caller)?;
        }
        let name = definition.name.map_or("anonymous", |name| excerpt(&template.names[name]));
        if definition.takes_keywords {
            let mut kwargs = DictBuilder::new(&self.budget)?;
            for (name, value) in keywords {
                kwargs.insert(Value::Text(name), value)?;
            }
            self.store(KWARGS, Value::Dict(kwargs.finish()?))?;
        } else if let Some((keyword, _)) = keywords.first() {
            return fail(format!("macro '{name}' takes no keyword argument '{}'", excerpt(keyword)));
        }
        if definition.takes_arguments {
            let rest = List::new(&self.budget, positional.collect())?;
            self.store(VARARGS, Value::Tuple(rest))?;
        } else if positional.next().is_some() {
            let most = definition.parameters.len();
            return fail(format!("macro '{name}' takes not more than {most} argument(s)"));
        }
        Ok(())
    }
}

fn take(keywords: &mut Vec<(Text, Value)>, name: &str) -> Option<Value> {
    let at = keywords.iter().position(|(found, _)| **found == *name)?;
    Some(keywords.remove(at).1)
}
