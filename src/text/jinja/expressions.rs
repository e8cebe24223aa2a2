//! Parses expressions.

use super::{
    ast::{Arguments, Constant, Expr, Filter, Postfix},
    budget::{MAX_SYNTAX_DEPTH, Outcome, fail},
    lexer::LexToken,
    parser::Parser,
    value::excerpt,
};

impl Parser {
    /// Goes one level deeper.
    pub fn nested<T>(&mut self, parse: impl FnOnce(&mut Self) -> Outcome<T>) -> Outcome<T> {
        self.depth += 1;
        if self.depth > MAX_SYNTAX_DEPTH {
            return fail(format!("it is nested more than {MAX_SYNTAX_DEPTH} deep"));
        }
        let parsed = parse(self);
        self.depth -= 1;
        parsed
    }

    pub fn expression(&mut self) -> Outcome<Expr> {
        self.nested(Self::conditional)
    }

    /// An expression, or several with commas between them. In some places a condition after it, or the name that `ends`
    /// it, belongs to the tag.
    pub fn tuple(&mut self, with_condition: bool, ends: &str) -> Outcome<Expr> {
        let (mut items, mut is_tuple) = (Vec::new(), false);
        while !self.ends_tuple() && !self.is_name(ends) {
            items.push(if with_condition { self.expression()? } else { self.nested(Self::or)? });
            if !self.skip_operator(",") {
                break;
            }
            is_tuple = true;
        }
        match items.pop() {
            Some(only) if !is_tuple => Ok(only),
            Some(last) => {
                items.push(last);
                Ok(Expr::Tuple(items))
            }
            None if is_tuple => Ok(Expr::Tuple(items)),
            None => fail(format!("Expected an expression, got {}", self.describe())),
        }
    }

    fn ends_tuple(&self) -> bool {
        matches!(self.current(), LexToken::EndBlock | LexToken::EndPrint | LexToken::Operator(")"))
    }

    fn conditional(&mut self) -> Outcome<Expr> {
        let (mut cases, mut value) = (Vec::new(), self.or()?);
        let depth = self.depth;
        while self.skip_name("if") {
            let condition = self.or()?;
            if self.skip_name("else") {
                cases.push((value, condition));
                value = self.or()?;
            } else {
                // A further `if` applies to the whole so far.
                cases.push((value, condition));
                value = Expr::If(std::mem::take(&mut cases), None);
                self.depth += 1;
                if self.depth > MAX_SYNTAX_DEPTH {
                    return fail(format!("it is nested more than {MAX_SYNTAX_DEPTH} deep"));
                }
            }
        }
        self.depth = depth;
        Ok(if cases.is_empty() { value } else { Expr::If(cases, Some(value.into())) })
    }

    pub fn or(&mut self) -> Outcome<Expr> {
        self.joined("or", Self::and, Expr::Or)
    }

    fn and(&mut self) -> Outcome<Expr> {
        self.joined("and", Self::not, Expr::And)
    }

    fn joined(
        &mut self,
        name: &str,
        part: fn(&mut Self) -> Outcome<Expr>,
        join: fn(Vec<Expr>) -> Expr,
    ) -> Outcome<Expr> {
        let first = part(self)?;
        if !self.is_name(name) {
            return Ok(first);
        }
        let mut parts = vec![first];
        while self.skip_name(name) {
            parts.push(part(self)?);
        }
        Ok(join(parts))
    }

    fn not(&mut self) -> Outcome<Expr> {
        let mut count = 0;
        while self.skip_name("not") {
            count += 1;
        }
        let compared = self.compared()?;
        Ok(if count == 0 { compared } else { Expr::Not(count, compared.into()) })
    }

    fn compared(&mut self) -> Outcome<Expr> {
        let (first, mut rest) = (self.sum()?, Vec::new());
        loop {
            let operator = match self.current() {
                LexToken::Operator(operator @ ("==" | "!=" | ">" | ">=" | "<" | "<=")) => *operator,
                LexToken::Name(name) if name == "in" => "in",
                LexToken::Name(name)
                    if name == "not" && matches!(self.after(), LexToken::Name(name) if name == "in") =>
                {
                    self.advance();
                    "not in"
                }
                _ => break,
            };
            self.advance();
            rest.push((operator, self.sum()?));
        }
        Ok(if rest.is_empty() { first } else { Expr::Compare(first.into(), rest) })
    }

    fn sum(&mut self) -> Outcome<Expr> {
        self.chain(&["+", "-"], Self::concatenation)
    }

    fn concatenation(&mut self) -> Outcome<Expr> {
        let first = self.product()?;
        if *self.current() != LexToken::Operator("~") {
            return Ok(first);
        }
        let mut parts = vec![first];
        while self.skip_operator("~") {
            parts.push(self.product()?);
        }
        Ok(Expr::Concat(parts))
    }

    fn product(&mut self) -> Outcome<Expr> {
        self.chain(&["*", "/", "//", "%"], Self::power)
    }

    fn power(&mut self) -> Outcome<Expr> {
        self.chain(&["**"], Self::signed)
    }

    fn chain(&mut self, operators: &[&str], part: fn(&mut Self) -> Outcome<Expr>) -> Outcome<Expr> {
        let (first, mut rest) = (part(self)?, Vec::new());
        while let LexToken::Operator(operator) = *self.current()
            && operators.contains(&operator)
        {
            self.advance();
            rest.push((operator, part(self)?));
        }
        Ok(if rest.is_empty() { first } else { Expr::Arithmetic(first.into(), rest) })
    }

    fn signed(&mut self) -> Outcome<Expr> {
        let mut signs = Vec::new();
        while let LexToken::Operator(sign @ ("+" | "-")) = *self.current() {
            self.advance();
            signs.push(sign == "-");
        }
        let primary = self.primary()?;
        let mut operand = self.steps(primary, false)?;
        if !signs.is_empty() {
            operand = Expr::Signed(signs, operand.into());
            operand = self.steps(operand, false)?;
        }
        self.steps(operand, true)
    }

    pub fn primary(&mut self) -> Outcome<Expr> {
        let token = self.take();
        let constant = match token {
            LexToken::Name(name) => match &name[..] {
                "true" | "True" => Constant::Bool(true),
                "false" | "False" => Constant::Bool(false),
                "none" | "None" => Constant::None,
                _ => {
                    self.note_use(&name);
                    return Ok(Expr::Name(self.name_id(name)));
                }
            },
            LexToken::Text(mut text) => {
                while let LexToken::Text(more) = self.current() {
                    text.push_str(more);
                    self.advance();
                }
                Constant::Text(text)
            }
            LexToken::Int(number) => Constant::Int(number),
            LexToken::Float(number) => Constant::Float(number),
            LexToken::Operator("(") => {
                if self.skip_operator(")") {
                    return Ok(Expr::Tuple(Vec::new()));
                }
                let inner = self.tuple(true, "")?;
                self.expect_operator(")")?;
                return Ok(inner);
            }
            LexToken::Operator("[") => return Ok(Expr::List(self.items("]", Self::expression)?)),
            LexToken::Operator("{") => return Ok(Expr::Dict(self.items("}", Self::entry)?)),
            other => return fail(format!("unexpected {}", super::parser::describe(&other))),
        };
        Ok(Expr::Constant(self.constant_id(constant)))
    }

    fn entry(&mut self) -> Outcome<(Expr, Expr)> {
        let key = self.expression()?;
        self.expect_operator(":")?;
        Ok((key, self.expression()?))
    }

    /// Items with commas between them, and perhaps one behind the last.
    fn items<T>(&mut self, close: &'static str, item: fn(&mut Self) -> Outcome<T>) -> Outcome<Vec<T>> {
        let mut items = Vec::new();
        while !self.skip_operator(close) {
            if !items.is_empty() {
                self.expect_operator(",")?;
                if self.skip_operator(close) {
                    break;
                }
            }
            items.push(item(self)?);
        }
        Ok(items)
    }

    /// Attributes, items and calls, and with `filters` also filters and tests.
    pub fn steps(&mut self, of: Expr, filters: bool) -> Outcome<Expr> {
        let (base, mut steps) = match of {
            Expr::Postfix(base, steps) => (base, steps),
            other => (Box::new(other), Vec::new()),
        };
        loop {
            match self.current() {
                LexToken::Operator("|") if filters => {
                    self.advance();
                    steps.push(Postfix::Filter(self.filter()?));
                }
                LexToken::Name(name) if filters && name == "is" => {
                    self.advance();
                    steps.push(self.test()?);
                }
                LexToken::Operator("(") => steps.push(Postfix::Call(self.arguments()?.into())),
                LexToken::Operator(".") if !filters => {
                    self.advance();
                    steps.push(self.attribute()?);
                }
                LexToken::Operator("[") if !filters => {
                    self.advance();
                    steps.push(self.subscript()?);
                }
                _ => break,
            }
        }
        Ok(if steps.is_empty() { *base } else { Expr::Postfix(base, steps) })
    }

    fn attribute(&mut self) -> Outcome<Postfix> {
        match self.take() {
            LexToken::Name(name) => Ok(Postfix::Attribute(self.constant_id(Constant::Text(name)))),
            LexToken::Int(number) => Ok(Postfix::Item(Expr::Constant(self.constant_id(Constant::Int(number))))),
            _ => fail("expected name or number"),
        }
    }

    fn subscript(&mut self) -> Outcome<Postfix> {
        let mut items = self.items("]", Self::subscribed)?;
        match items.pop() {
            Some(only) if items.is_empty() => Ok(only),
            // A tuple with slices in it is no key of anything.
            last => {
                let keys = items.into_iter().chain(last).filter_map(|step| match step {
                    Postfix::Item(key) => Some(key),
                    _ => None,
                });
                Ok(Postfix::Item(Expr::Tuple(keys.collect())))
            }
        }
    }

    fn subscribed(&mut self) -> Outcome<Postfix> {
        let mut parts = [None, None, None];
        for (at, part) in parts.iter_mut().enumerate() {
            let is_empty = matches!(self.current(), LexToken::Operator(":" | "]" | ","));
            if !is_empty {
                *part = Some(self.expression()?);
            }
            if at == 2 || !self.skip_operator(":") {
                return match (at, parts) {
                    (0, [Some(key), ..]) => Ok(Postfix::Item(key)),
                    (0, _) => fail(format!("unexpected {}", self.describe())),
                    (_, parts) => Ok(Postfix::Slice(parts.into())),
                };
            }
        }
        fail("expected subscript expression")
    }

    pub fn arguments(&mut self) -> Outcome<Arguments> {
        self.expect_operator("(")?;
        let mut arguments = Arguments::default();
        let mut is_first = true;
        while !self.skip_operator(")") {
            if !is_first {
                self.expect_operator(",")?;
                if self.skip_operator(")") {
                    break;
                }
            }
            is_first = false;
            self.argument(&mut arguments)?;
        }
        Ok(arguments)
    }

    fn argument(&mut self, arguments: &mut Arguments) -> Outcome<()> {
        let bad = || fail("invalid syntax for function call expression");
        if arguments.more_keywords.is_some() {
            return bad();
        }
        if self.skip_operator("*") {
            if arguments.more.is_some() {
                return bad();
            }
            arguments.more = Some(self.expression()?);
        } else if self.skip_operator("**") {
            arguments.more_keywords = Some(self.expression()?);
        } else if let (LexToken::Name(name), LexToken::Operator("=")) = (self.current(), self.after()) {
            let name = name.clone();
            self.advance();
            self.advance();
            let name = self.constant_id(Constant::Text(name));
            arguments.keywords.push((name, self.expression()?));
        } else if arguments.more.is_some() || !arguments.keywords.is_empty() {
            return bad();
        } else {
            arguments.positional.push(self.expression()?);
        }
        Ok(())
    }

    /// A filter behind its `|`.
    pub fn filter(&mut self) -> Outcome<Filter> {
        let name = self.dotted()?;
        let has_arguments = *self.current() == LexToken::Operator("(");
        let arguments = if has_arguments { self.arguments()? } else { Arguments::default() };
        if !self.in_condition && !super::filters::is_filter(&name) {
            return fail(format!("No filter named '{}'.", excerpt(&name)));
        }
        Ok(Filter { name, arguments: arguments.into() })
    }

    fn dotted(&mut self) -> Outcome<String> {
        let mut name = self.expect_any_name()?;
        while self.skip_operator(".") {
            name.push('.');
            name.push_str(&self.expect_any_name()?);
        }
        Ok(name)
    }

    /// A test behind its `is`.
    fn test(&mut self) -> Outcome<Postfix> {
        let negated = self.skip_name("not");
        let name = self.dotted()?;
        let arguments = match self.current() {
            LexToken::Operator("(") => self.arguments()?,
            LexToken::Name(name) if ["else", "or", "and"].contains(&&name[..]) => Arguments::default(),
            LexToken::Name(name) if name == "is" => return fail("You cannot chain multiple tests with is"),
            LexToken::Name(_)
            | LexToken::Text(_)
            | LexToken::Int(_)
            | LexToken::Float(_)
            | LexToken::Operator("[" | "{") => {
                let primary = self.nested(Self::primary)?;
                Arguments { positional: vec![self.steps(primary, false)?], ..Arguments::default() }
            }
            _ => Arguments::default(),
        };
        if !self.in_condition && !super::tests::is_test(&name) {
            return fail(format!("No test named '{}'.", excerpt(&name)));
        }
        Ok(Postfix::Test { name, arguments: arguments.into(), negated })
    }
}
