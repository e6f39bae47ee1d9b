//! Parses tokens to expressions by recursive descent: OR, AND, NOT, comparison, sum, product, sign.

use super::lexer::{SqlToken, tokens};
use super::{ActionStatement, Arithmetic, Comparison, Datum, PropertyRef, SqlExpression, SqlParameters, SystemName};

/// The deepest nesting, so that no expression can exhaust the stack. The length limit is the service's.
const MAX_DEPTH: usize = 64;
const MAX_LENGTH: usize = 1024;

pub(in super::super) fn parse_condition(text: &str, parameters: &SqlParameters) -> Result<SqlExpression, String> {
    let mut parser = SqlParser::new(text, parameters)?;
    let condition = parser.disjunction()?;
    parser.end()?;
    Ok(condition)
}

pub(in super::super) fn parse_action(text: &str, parameters: &SqlParameters) -> Result<Vec<ActionStatement>, String> {
    let mut parser = SqlParser::new(text, parameters)?;
    let mut statements = Vec::new();
    while parser.at < parser.tokens.len() {
        statements.push(parser.statement()?);
        while parser.take_sign(";") || parser.take_sign(",") {}
    }
    if statements.is_empty() {
        return Err("the action is empty".to_owned());
    }
    Ok(statements)
}

struct SqlParser<'a> {
    tokens: Vec<SqlToken>,
    at: usize,
    depth: usize,
    parameters: &'a SqlParameters,
}

impl<'a> SqlParser<'a> {
    fn new(text: &str, parameters: &'a SqlParameters) -> Result<Self, String> {
        let length = text.chars().count();
        if length > MAX_LENGTH {
            return Err(format!("it has {length} characters, at most {MAX_LENGTH} are allowed"));
        }
        Ok(Self { tokens: tokens(text)?, at: 0, depth: 0, parameters })
    }

    fn statement(&mut self) -> Result<ActionStatement, String> {
        if self.take_word("REMOVE") {
            return Ok(ActionStatement::Remove(self.property()?));
        }
        if !self.take_word("SET") {
            return Err(self.unexpected("SET or REMOVE"));
        }
        let property = self.property()?;
        self.sign("=")?;
        Ok(ActionStatement::Set(property, self.disjunction()?))
    }

    fn disjunction(&mut self) -> Result<SqlExpression, String> {
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            return Err(format!("it is nested deeper than {MAX_DEPTH}"));
        }
        let mut left = self.conjunction()?;
        while self.take_word("OR") {
            left = SqlExpression::Or(Box::new(left), Box::new(self.conjunction()?));
        }
        self.depth -= 1;
        Ok(left)
    }

    fn conjunction(&mut self) -> Result<SqlExpression, String> {
        let mut left = self.negation()?;
        while self.take_word("AND") {
            left = SqlExpression::And(Box::new(left), Box::new(self.negation()?));
        }
        Ok(left)
    }

    fn negation(&mut self) -> Result<SqlExpression, String> {
        let mut negated = false;
        while self.take_word("NOT") {
            negated = !negated;
        }
        let condition = self.comparison()?;
        Ok(if negated { SqlExpression::Not(Box::new(condition)) } else { condition })
    }

    fn comparison(&mut self) -> Result<SqlExpression, String> {
        let left = self.sum()?;
        if let Some(comparison) = self.take_comparison() {
            return Ok(SqlExpression::Compare(comparison, Box::new(left), Box::new(self.sum()?)));
        }
        if self.take_word("IS") {
            let negated = self.take_word("NOT");
            self.word("NULL")?;
            return Ok(not_if(negated, SqlExpression::IsNull(Box::new(left))));
        }
        let negated = self.take_word("NOT");
        if self.take_word("IN") {
            return Ok(not_if(negated, SqlExpression::In(Box::new(left), self.list()?)));
        }
        if self.take_word("LIKE") {
            let pattern = Box::new(self.sum()?);
            let escape = if self.take_word("ESCAPE") { Some(Box::new(self.sum()?)) } else { None };
            return Ok(not_if(negated, SqlExpression::Like { value: Box::new(left), pattern, escape }));
        }
        if negated { Err(self.unexpected("IN or LIKE")) } else { Ok(left) }
    }

    fn list(&mut self) -> Result<Vec<SqlExpression>, String> {
        self.sign("(")?;
        let mut items = vec![self.sum()?];
        while self.take_sign(",") {
            items.push(self.sum()?);
        }
        self.sign(")")?;
        Ok(items)
    }

    fn sum(&mut self) -> Result<SqlExpression, String> {
        let mut left = self.product()?;
        loop {
            let operator = match self.take_one_of(&["+", "-"]) {
                Some("+") => Arithmetic::Add,
                Some(_) => Arithmetic::Subtract,
                None => return Ok(left),
            };
            left = SqlExpression::Arithmetic(operator, Box::new(left), Box::new(self.product()?));
        }
    }

    fn product(&mut self) -> Result<SqlExpression, String> {
        let mut left = self.signed()?;
        loop {
            let operator = match self.take_one_of(&["*", "/", "%"]) {
                Some("*") => Arithmetic::Multiply,
                Some("/") => Arithmetic::Divide,
                Some(_) => Arithmetic::Remainder,
                None => return Ok(left),
            };
            left = SqlExpression::Arithmetic(operator, Box::new(left), Box::new(self.signed()?));
        }
    }

    fn signed(&mut self) -> Result<SqlExpression, String> {
        let mut negated = false;
        while let Some(sign) = self.take_one_of(&["+", "-"]) {
            negated ^= sign == "-";
        }
        let value = self.atom()?;
        Ok(if negated { SqlExpression::Negate(Box::new(value)) } else { value })
    }

    fn atom(&mut self) -> Result<SqlExpression, String> {
        if self.take_sign("(") {
            let inner = self.disjunction()?;
            self.sign(")")?;
            return Ok(inner);
        }
        let literal = match self.tokens.get(self.at) {
            Some(SqlToken::Text(text)) => Datum::Text(text.clone()),
            Some(SqlToken::Integer(number)) => Datum::Integer(*number),
            Some(SqlToken::Float(number)) => Datum::Float(*number),
            Some(SqlToken::Parameter(name)) => {
                let found = self.parameters.iter().find(|(known, _)| known.trim_start_matches('@') == name);
                found
                    .map(|(_, value)| Datum::from(value))
                    .ok_or_else(|| format!("the parameter @{name} has no value"))?
            }
            Some(SqlToken::Word(_)) => return self.word_or_property(),
            _ => return self.property().map(SqlExpression::Property),
        };
        self.at += 1;
        Ok(SqlExpression::Literal(literal))
    }

    fn word_or_property(&mut self) -> Result<SqlExpression, String> {
        for (word, value) in [("TRUE", Datum::Bool(true)), ("FALSE", Datum::Bool(false)), ("NULL", Datum::Null)] {
            if self.take_word(word) {
                return Ok(SqlExpression::Literal(value));
            }
        }
        if self.take_call("EXISTS") {
            let property = self.property()?;
            self.sign(")")?;
            return Ok(SqlExpression::Exists(property));
        }
        if self.take_call("NEWID") {
            self.sign(")")?;
            return Ok(SqlExpression::NewId);
        }
        if self.take_call("P") || self.take_call("PROPERTY") {
            let Some(SqlToken::Text(name)) = self.tokens.get(self.at).cloned() else {
                return Err(self.unexpected("a property's name in quotes"));
            };
            self.at += 1;
            self.sign(")")?;
            return Ok(SqlExpression::Property(PropertyRef::User(name)));
        }
        self.property().map(SqlExpression::Property)
    }

    fn property(&mut self) -> Result<PropertyRef, String> {
        let scope = self.name()?;
        if !self.take_sign(".") {
            return Ok(PropertyRef::User(scope));
        }
        let name = self.name()?;
        match scope.to_ascii_lowercase().as_str() {
            "user" => Ok(PropertyRef::User(name)),
            "sys" => SystemName::named(&name)
                .map(PropertyRef::System)
                .ok_or_else(|| format!("there is no system property '{name}'")),
            _ => Err(format!("'{scope}' is no scope; there are sys and user, and names with dots stand in quotes")),
        }
    }

    fn name(&mut self) -> Result<String, String> {
        match self.tokens.get(self.at) {
            Some(SqlToken::Word(name) | SqlToken::Quoted(name)) => {
                let name = name.clone();
                self.at += 1;
                Ok(name)
            }
            _ => Err(self.unexpected("a property or a value")),
        }
    }

    fn take_comparison(&mut self) -> Option<Comparison> {
        Some(match self.take_one_of(&["=", "<>", "<", "<=", ">", ">="])? {
            "=" => Comparison::Equal,
            "<>" => Comparison::NotEqual,
            "<" => Comparison::Less,
            "<=" => Comparison::LessOrEqual,
            ">" => Comparison::Greater,
            _ => Comparison::GreaterOrEqual,
        })
    }

    fn take_one_of(&mut self, signs: &[&'static str]) -> Option<&'static str> {
        signs.iter().find(|sign| self.take_sign(sign)).copied()
    }

    fn take_sign(&mut self, sign: &str) -> bool {
        let found = matches!(self.tokens.get(self.at), Some(SqlToken::Sign(found)) if *found == sign);
        self.at += usize::from(found);
        found
    }

    fn take_word(&mut self, word: &str) -> bool {
        let found = matches!(self.tokens.get(self.at), Some(SqlToken::Word(found)) if found.eq_ignore_ascii_case(word));
        self.at += usize::from(found);
        found
    }

    /// A function's name and its opening bracket; without the bracket it is a property of that name.
    fn take_call(&mut self, name: &str) -> bool {
        let called = self.tokens.get(self.at + 1) == Some(&SqlToken::Sign("("));
        let taken = called && self.take_word(name);
        self.at += usize::from(taken);
        taken
    }

    fn sign(&mut self, sign: &str) -> Result<(), String> {
        if self.take_sign(sign) { Ok(()) } else { Err(self.unexpected(sign)) }
    }

    fn word(&mut self, word: &str) -> Result<(), String> {
        if self.take_word(word) { Ok(()) } else { Err(self.unexpected(word)) }
    }

    fn end(&self) -> Result<(), String> {
        if self.at == self.tokens.len() { Ok(()) } else { Err(self.unexpected("the end")) }
    }

    fn unexpected(&self, wanted: &str) -> String {
        match self.tokens.get(self.at) {
            Some(SqlToken::Word(found) | SqlToken::Quoted(found)) => format!("expected {wanted}, found '{found}'"),
            Some(SqlToken::Sign(found)) => format!("expected {wanted}, found '{found}'"),
            Some(_) => format!("expected {wanted}, found a value"),
            None => format!("expected {wanted}, found the end"),
        }
    }
}

fn not_if(negated: bool, condition: SqlExpression) -> SqlExpression {
    if negated { SqlExpression::Not(Box::new(condition)) } else { condition }
}
