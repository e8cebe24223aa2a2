//! The syntax tree of a template. Chains are lists, so that only brackets and blocks nest.

/// The number of a name or of a constant in its table.
pub type Id = usize;

/// Names that mean something to Jinja, with these numbers in each template.
pub const SPECIAL_NAMES: [&str; 4] = ["varargs", "kwargs", "caller", "loop"];
pub const VARARGS: Id = 0;
pub const KWARGS: Id = 1;
pub const CALLER: Id = 2;
pub const LOOP: Id = 3;

#[derive(Debug, Clone, PartialEq)]
pub enum Constant {
    None,
    Bool(bool),
    Int(i128),
    Float(f64),
    Text(String),
}

#[derive(Debug)]
pub enum Expr {
    Constant(Id),
    Name(Id),
    /// `a ~ b`
    Concat(Vec<Expr>),
    /// `a + b - c`, from left to right.
    Arithmetic(Box<Expr>, Vec<(&'static str, Expr)>),
    /// Signs, the innermost last.
    Signed(Vec<bool>, Box<Expr>),
    /// `not a`, as often.
    Not(usize, Box<Expr>),
    And(Vec<Expr>),
    Or(Vec<Expr>),
    /// `a < b == c`
    Compare(Box<Expr>, Vec<(&'static str, Expr)>),
    /// `a if b else c if d else e`
    If(Vec<(Expr, Expr)>, Option<Box<Expr>>),
    List(Vec<Expr>),
    Tuple(Vec<Expr>),
    Dict(Vec<(Expr, Expr)>),
    /// `a.b[c](d) | e is f`
    Postfix(Box<Expr>, Vec<Postfix>),
}

/// An operation on the value before it.
#[derive(Debug)]
pub enum Postfix {
    Attribute(Id),
    Item(Expr),
    Slice(Box<[Option<Expr>; 3]>),
    Call(Box<Arguments>),
    Filter(Filter),
    Test { name: String, arguments: Box<Arguments>, negated: bool },
}

#[derive(Debug)]
pub struct Filter {
    pub name: String,
    pub arguments: Box<Arguments>,
}

#[derive(Debug, Default)]
pub struct Arguments {
    pub positional: Vec<Expr>,
    pub keywords: Vec<(Id, Expr)>,
    /// `*args`
    pub more: Option<Expr>,
    /// `**kwargs`
    pub more_keywords: Option<Expr>,
}

#[derive(Debug)]
pub struct Node {
    pub line: u32,
    pub statement: Statement,
}

pub type Body = Vec<Node>;

#[derive(Debug)]
pub enum Statement {
    Data(Id),
    Print(Expr),
    If(Vec<(Expr, Body)>, Body),
    /// A loop, by its number.
    For(usize),
    Set(AssignTarget, Expr),
    SetBlock(AssignTarget, Vec<Filter>, Body),
    With(Vec<(AssignTarget, Expr)>, Body),
    /// Puts a macro under its name.
    Macro(Id, usize),
    /// A block, by the number of its macro: it is written where it stands, and again by `self.name()`.
    Block(usize),
    /// A call with a body, which is a macro, too.
    Call(Expr, Box<Arguments>, usize),
    Filter(Vec<Filter>, Body),
    /// A body with a scope of its own.
    Scope(Body),
    Autoescape(Expr, Body),
    Break,
    Continue,
    /// A tag that asks for another template, of which there are none.
    OtherTemplate,
}

#[derive(Debug)]
pub struct For {
    pub target: AssignTarget,
    pub items: Expr,
    pub condition: Option<Expr>,
    pub is_recursive: bool,
    pub body: Body,
    pub otherwise: Body,
}

/// The target of an assignment.
#[derive(Debug)]
pub enum AssignTarget {
    Name(Id),
    /// An attribute of a namespace.
    Attribute(Id, Id),
    Tuple(Vec<AssignTarget>),
}

#[derive(Debug, Default)]
pub struct Macro {
    pub name: Option<Id>,
    pub parameters: Vec<(Id, Option<Expr>)>,
    pub body: Body,
    /// Whether its body uses `varargs`.
    pub takes_arguments: bool,
    pub takes_keywords: bool,
    pub takes_caller: bool,
}
