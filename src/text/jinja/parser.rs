//! Parses a template: its text and tags. Expressions are in [`expressions`](super::expressions).

use std::collections::HashMap;

use super::{
    ast::{AssignTarget, Body, Constant, Expr, Filter, For, Id, LOOP, Macro, Node, Postfix, SPECIAL_NAMES, Statement},
    budget::{Outcome, fail},
    lexer::{LexToken, tokenize},
    value::excerpt,
};

/// A parsed template.
#[derive(Debug, Default)]
pub struct Parsed {
    pub body: Body,
    pub macros: Vec<Macro>,
    /// The names of blocks, and the macros with their bodies.
    pub blocks: Vec<(String, usize)>,
    pub loops: Vec<For>,
    pub constants: Vec<Constant>,
    pub names: Vec<String>,
}

pub struct Parser {
    tokens: Vec<(LexToken, u32)>,
    at: usize,
    /// How deep the part that is being parsed is nested.
    pub depth: usize,
    /// Whether the current code may never run, so that it may use unknown filters.
    pub in_condition: bool,
    loops: usize,
    parsed: Parsed,
    name_ids: HashMap<String, Id>,
    constant_ids: HashMap<String, Id>,
    /// For each macro around: whether it uses `varargs`, `kwargs`, `caller`.
    uses: Vec<[bool; 3]>,
}

/// Parses a template.
pub fn parse(source: &str) -> Outcome<Parsed> {
    let tokens = tokenize(source)?;
    let mut parser = Parser {
        tokens,
        at: 0,
        depth: 0,
        in_condition: false,
        loops: 0,
        parsed: Parsed::default(),
        name_ids: HashMap::new(),
        constant_ids: HashMap::new(),
        uses: Vec::new(),
    };
    for name in SPECIAL_NAMES {
        parser.name_id(name.to_owned());
    }
    match parser.body(&[]) {
        Ok(body) => Ok(Parsed { body, ..parser.parsed }),
        Err(mut failure) => {
            failure.reason = format!("line {}: {}", parser.line(), failure.reason);
            Err(failure)
        }
    }
}

/// Names a token in a message.
pub fn describe(token: &LexToken) -> String {
    match token {
        LexToken::Data(_) => "template data / text".into(),
        LexToken::BeginPrint => "begin of print statement".into(),
        LexToken::EndPrint => "end of print statement".into(),
        LexToken::BeginBlock => "begin of statement block".into(),
        LexToken::EndBlock => "end of statement block".into(),
        LexToken::Name(name) => format!("'{}'", excerpt(name)),
        LexToken::Text(_) => "a string".into(),
        LexToken::Int(_) | LexToken::Float(_) => "a number".into(),
        LexToken::Operator(operator) => format!("'{operator}'"),
        LexToken::End => "end of template".into(),
    }
}

impl Parser {
    pub fn current(&self) -> &LexToken {
        self.tokens.get(self.at).map_or(&LexToken::End, |(token, _)| token)
    }

    pub fn after(&self) -> &LexToken {
        self.tokens.get(self.at + 1).map_or(&LexToken::End, |(token, _)| token)
    }

    fn line(&self) -> u32 {
        self.tokens.get(self.at.min(self.tokens.len().saturating_sub(1))).map_or(1, |(_, line)| *line)
    }

    pub fn describe(&self) -> String {
        describe(self.current())
    }

    pub fn advance(&mut self) {
        self.at += 1;
    }

    /// The current token, out of which the parser then goes.
    pub fn take(&mut self) -> LexToken {
        let taken = self.tokens.get_mut(self.at).map(|(token, _)| std::mem::replace(token, LexToken::End));
        self.at += usize::from(taken.as_ref().is_some_and(|token| *token != LexToken::End));
        taken.unwrap_or(LexToken::End)
    }

    pub fn is_name(&self, name: &str) -> bool {
        matches!(self.current(), LexToken::Name(found) if found == name)
    }

    pub fn skip_name(&mut self, name: &str) -> bool {
        let found = self.is_name(name);
        self.at += usize::from(found);
        found
    }

    pub fn skip_operator(&mut self, operator: &'static str) -> bool {
        let found = *self.current() == LexToken::Operator(operator);
        self.at += usize::from(found);
        found
    }

    pub fn expect_operator(&mut self, operator: &'static str) -> Outcome<()> {
        self.expect(&LexToken::Operator(operator))
    }

    fn expect(&mut self, token: &LexToken) -> Outcome<()> {
        if self.current() != token {
            return fail(format!("expected token {}, got {}", describe(token), self.describe()));
        }
        self.advance();
        Ok(())
    }

    pub fn expect_any_name(&mut self) -> Outcome<String> {
        match self.current() {
            LexToken::Name(_) => match self.take() {
                LexToken::Name(name) => Ok(name),
                _ => Ok(String::new()),
            },
            _ => fail(format!("expected token 'name', got {}", self.describe())),
        }
    }

    fn expect_name(&mut self, name: &str) -> Outcome<()> {
        if self.skip_name(name) { Ok(()) } else { fail(format!("expected token '{name}', got {}", self.describe())) }
    }

    pub fn name_id(&mut self, name: String) -> Id {
        let next = self.parsed.names.len();
        let id = *self.name_ids.entry(name.clone()).or_insert(next);
        if id == next {
            self.parsed.names.push(name);
        }
        id
    }

    pub fn constant_id(&mut self, constant: Constant) -> Id {
        let next = self.parsed.constants.len();
        if let Constant::Text(text) = &constant {
            let id = *self.constant_ids.entry(text.clone()).or_insert(next);
            if id != next {
                return id;
            }
        }
        self.parsed.constants.push(constant);
        next
    }

    /// Notes that the macros around use a name.
    pub fn note_use(&mut self, name: &str) {
        if let Some(at) = SPECIAL_NAMES[..3].iter().position(|special| *special == name) {
            self.uses.iter_mut().for_each(|uses| uses[at] = true);
        }
    }

    /// Statements up to a tag of one of these names, which is the current token then.
    fn body(&mut self, ends: &[&str]) -> Outcome<Body> {
        let mut body = Vec::new();
        loop {
            let line = self.line();
            let statement = match self.take() {
                LexToken::End if ends.is_empty() => return Ok(body),
                LexToken::End => {
                    return fail(format!("Unexpected end of template: '{}' is missing", ends.join("' or '")));
                }
                LexToken::Data(text) => Statement::Data(self.constant_id(Constant::Text(text))),
                LexToken::BeginPrint => {
                    let value = self.tuple(true, "")?;
                    self.expect(&LexToken::EndPrint)?;
                    Statement::Print(value)
                }
                LexToken::BeginBlock => {
                    if ends.iter().any(|end| self.is_name(end)) {
                        return Ok(body);
                    }
                    let statement = self.nested(|parser| parser.statement(&mut body, line))?;
                    self.expect(&LexToken::EndBlock)?;
                    let Some(statement) = statement else { continue };
                    statement
                }
                other => return fail(format!("unexpected {}", describe(&other))),
            };
            body.push(Node { line, statement });
        }
    }

    /// A block's statements: from the end of its first tag to its last one, which is skipped.
    fn block(&mut self, end: &str) -> Outcome<Body> {
        self.begin_block()?;
        let body = self.body(&[end])?;
        self.advance();
        Ok(body)
    }

    fn begin_block(&mut self) -> Outcome<()> {
        self.skip_operator(":");
        self.expect(&LexToken::EndBlock)
    }

    /// The statement of a tag. A tag that prints several values adds all but the last to `body`.
    fn statement(&mut self, body: &mut Body, line: u32) -> Outcome<Option<Statement>> {
        let tag = self.expect_any_name()?;
        Ok(Some(match &tag[..] {
            "for" => self.for_loop()?,
            "if" => self.condition()?,
            "set" => self.assignment()?,
            "with" => self.with()?,
            "macro" => self.macro_definition()?,
            "call" => self.call()?,
            "filter" => {
                let filters = self.filters(true)?;
                Statement::Filter(filters, self.block("endfilter")?)
            }
            "generation" => Statement::Scope(self.block("endgeneration")?),
            "block" => {
                let name = self.expect_any_name()?;
                let _ = (self.skip_name("scoped"), self.skip_name("required"));
                if self.parsed.blocks.iter().any(|(found, _)| *found == name) {
                    return fail(format!("block '{name}' defined twice"));
                }
                let body = self.block("endblock")?;
                self.skip_name(&name);
                let id = self.name_id(name.clone());
                let block = Macro { name: Some(id), body, ..Macro::default() };
                self.parsed.macros.push(block);
                let index = self.parsed.macros.len() - 1;
                self.parsed.blocks.push((name, index));
                Statement::Block(index)
            }
            "autoescape" => {
                let escapes = self.expression()?;
                Statement::Autoescape(escapes, self.block("endautoescape")?)
            }
            "print" => {
                let mut last = None;
                while *self.current() != LexToken::EndBlock {
                    if let Some(previous) = last {
                        body.push(Node { line, statement: Statement::Print(previous) });
                        self.expect_operator(",")?;
                    }
                    last = Some(self.expression()?);
                }
                return Ok(last.map(Statement::Print));
            }
            "break" | "continue" if self.loops == 0 => return fail(format!("'{tag}' outside loop")),
            "break" => Statement::Break,
            "continue" => Statement::Continue,
            "include" | "import" | "from" | "extends" => {
                while !matches!(self.current(), LexToken::EndBlock | LexToken::End) {
                    self.advance();
                }
                Statement::OtherTemplate
            }
            _ => return fail(format!("Encountered unknown tag '{}'.", excerpt(&tag))),
        }))
    }

    fn for_loop(&mut self) -> Outcome<Statement> {
        let target = self.target(false)?;
        if matches!(&target, AssignTarget::Name(LOOP)) {
            return fail("Can't assign to special loop variable in for-loop target");
        }
        self.expect_name("in")?;
        let items = self.tuple(false, "recursive")?;
        let condition = if self.skip_name("if") { Some(self.expression()?) } else { None };
        let is_recursive = self.skip_name("recursive");
        self.begin_block()?;
        self.loops += 1;
        let body = self.body(&["endfor", "else"])?;
        self.loops -= 1;
        let otherwise = if self.skip_name("else") { self.block("endfor")? } else { self.ended() };
        self.parsed.loops.push(For { target, items, condition, is_recursive, body, otherwise });
        Ok(Statement::For(self.parsed.loops.len() - 1))
    }

    /// Skips the tag that ends a block without anything else.
    fn ended(&mut self) -> Body {
        self.advance();
        Vec::new()
    }

    fn condition(&mut self) -> Outcome<Statement> {
        let (mut cases, was_in_condition) = (Vec::new(), self.in_condition);
        let otherwise = loop {
            let condition = self.tuple(false, "")?;
            self.begin_block()?;
            self.in_condition = true;
            cases.push((condition, self.body(&["elif", "else", "endif"])?));
            self.in_condition = was_in_condition;
            if !self.skip_name("elif") {
                self.in_condition = true;
                break if self.skip_name("else") { self.block("endif")? } else { self.ended() };
            }
        };
        self.in_condition = was_in_condition;
        Ok(Statement::If(cases, otherwise))
    }

    fn assignment(&mut self) -> Outcome<Statement> {
        let target = self.target(true)?;
        if self.skip_operator("=") {
            return Ok(Statement::Set(target, self.tuple(true, "")?));
        }
        let filters = self.filters(false)?;
        Ok(Statement::SetBlock(target, filters, self.block("endset")?))
    }

    /// Filters behind each other, of which the first has no `|` before it where it is `first`.
    fn filters(&mut self, first: bool) -> Outcome<Vec<Filter>> {
        let mut filters = Vec::new();
        if first {
            filters.push(self.filter()?);
        }
        while self.skip_operator("|") {
            filters.push(self.filter()?);
        }
        Ok(filters)
    }

    fn with(&mut self) -> Outcome<Statement> {
        let mut values = Vec::new();
        while *self.current() != LexToken::EndBlock {
            if !values.is_empty() {
                self.expect_operator(",")?;
            }
            let target = self.target(false)?;
            self.expect_operator("=")?;
            values.push((target, self.expression()?));
        }
        Ok(Statement::With(values, self.block("endwith")?))
    }

    /// The target of an assignment: a name, several, or attributes of namespaces.
    fn target(&mut self, with_attributes: bool) -> Outcome<AssignTarget> {
        self.nested(|parser| {
            let first = parser.single_target(with_attributes)?;
            if *parser.current() != LexToken::Operator(",") {
                return Ok(first);
            }
            let mut targets = vec![first];
            while parser.skip_operator(",") {
                if matches!(parser.current(), LexToken::Operator("=" | ")") | LexToken::EndBlock)
                    || parser.is_name("in")
                {
                    break;
                }
                targets.push(parser.single_target(with_attributes)?);
            }
            Ok(AssignTarget::Tuple(targets))
        })
    }

    fn single_target(&mut self, with_attributes: bool) -> Outcome<AssignTarget> {
        if self.skip_operator("(") {
            let inner = self.target(with_attributes)?;
            self.expect_operator(")")?;
            return Ok(inner);
        }
        let name = self.expect_any_name()?;
        if ["true", "false", "none", "True", "False", "None"].contains(&&name[..]) {
            return fail(format!("can't assign to '{name}'"));
        }
        let name = self.name_id(name);
        if with_attributes && self.skip_operator(".") {
            let attribute = self.expect_any_name()?;
            return Ok(AssignTarget::Attribute(name, self.constant_id(Constant::Text(attribute))));
        }
        Ok(AssignTarget::Name(name))
    }

    fn macro_definition(&mut self) -> Outcome<Statement> {
        let name = self.expect_any_name()?;
        let name = self.name_id(name);
        let parameters = self.parameters()?;
        let index = self.macro_body(Some(name), parameters, "endmacro")?;
        Ok(Statement::Macro(name, index))
    }

    fn parameters(&mut self) -> Outcome<Vec<(Id, Option<Expr>)>> {
        self.expect_operator("(")?;
        let mut parameters: Vec<(Id, Option<Expr>)> = Vec::new();
        while !self.skip_operator(")") {
            if !parameters.is_empty() {
                self.expect_operator(",")?;
            }
            let name = self.expect_any_name()?;
            let name = self.name_id(name);
            let default = if self.skip_operator("=") { Some(self.expression()?) } else { None };
            if default.is_none() && parameters.last().is_some_and(|(_, default)| default.is_some()) {
                return fail("non-default argument follows default argument");
            }
            parameters.push((name, default));
        }
        Ok(parameters)
    }

    fn macro_body(&mut self, name: Option<Id>, parameters: Vec<(Id, Option<Expr>)>, end: &str) -> Outcome<usize> {
        self.uses.push([false; 3]);
        let loops = std::mem::replace(&mut self.loops, 0);
        let body = self.block(end)?;
        self.loops = loops;
        let [takes_arguments, takes_keywords, takes_caller] = self.uses.pop().unwrap_or_default();
        self.parsed.macros.push(Macro { name, parameters, body, takes_arguments, takes_keywords, takes_caller });
        Ok(self.parsed.macros.len() - 1)
    }

    fn call(&mut self) -> Outcome<Statement> {
        let parameters = if *self.current() == LexToken::Operator("(") { self.parameters()? } else { Vec::new() };
        let call = self.expression()?;
        let Expr::Postfix(base, mut steps) = call else { return fail("expected call") };
        let Some(Postfix::Call(arguments)) = steps.pop() else { return fail("expected call") };
        let function = if steps.is_empty() { *base } else { Expr::Postfix(base, steps) };
        let index = self.macro_body(None, parameters, "endcall")?;
        Ok(Statement::Call(function, arguments, index))
    }
}
