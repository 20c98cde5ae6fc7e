// The syntax tree of a template. An expression knows its depth, and the parser refuses trees deeper than
// `Expression.maximumDepth`: evaluating (and freeing) a tree recurses, and its source may be hostile.

struct Expression: Sendable {
    let kind: Kind
    let depth: Int

    static let maximumDepth = 160

    indirect enum Kind: Sendable {
        case literal(JinjaValue)
        case name(String)
        case list([Expression])
        case tuple([Expression])
        case object([(key: Expression, value: Expression)])
        case attribute(Expression, String)
        case item(Expression, Expression)
        case slice(Expression, start: Expression?, stop: Expression?, step: Expression?)
        case call(Expression, Arguments)
        case filter(Expression, name: String, Arguments)
        case test(Expression, name: String, Arguments, isNegated: Bool)
        case not(Expression)
        case negated(Expression)
        case positive(Expression)
        case and(Expression, Expression)
        case or(Expression, Expression)
        case binary(BinaryOperator, Expression, Expression)
        /// `a < b <= c`: every neighbouring pair must hold.
        case comparison(Expression, [(Comparison, Expression)])
        case conditional(condition: Expression, then: Expression, otherwise: Expression?)
    }
}

enum BinaryOperator: String, Sendable {
    case add = "+"
    case subtract = "-"
    case concatenate = "~"
    case multiply = "*"
    case divide = "/"
    case floorDivide = "//"
    case remainder = "%"
    case power = "**"
}

enum Comparison: String, Sendable {
    case equal = "=="
    case notEqual = "!="
    case less = "<"
    case lessOrEqual = "<="
    case greater = ">"
    case greaterOrEqual = ">="
    case contained = "in"
    case notContained = "not in"
}

struct Arguments: Sendable {
    var positional: [Expression] = []
    var named: [(name: String, value: Expression)] = []
    /// `*list` and `**object`.
    var spread: Expression?
    var namedSpread: Expression?

    var expressions: [Expression] { positional + named.map(\.value) + [spread, namedSpread].compactMap { $0 } }
}

struct Statement: Sendable {
    let kind: Kind
    /// Counts from 1.
    let line: Int

    indirect enum Kind: Sendable {
        case text(String)
        case output(Expression)
        case branch([(condition: Expression, body: [Statement])], otherwise: [Statement])
        case loop(Loop)
        case set(AssignmentTarget, Expression)
        case setBlock(AssignmentTarget, filters: [FilterCall], body: [Statement])
        case macro(Macro)
        /// The body is what the called macro's `caller()` gives.
        case call(Expression, caller: Macro)
        case filterBlock([FilterCall], body: [Statement])
        /// `{% with a = 1, b = 2 %}`; the values are of the scope outside.
        case with([(names: [String], value: Expression)], body: [Statement])
        /// `{% generation %}`: marks what the assistant wrote; renders its body.
        case generation([Statement])
        case breakLoop
        case continueLoop
    }
}

struct FilterCall: Sendable {
    let name: String
    let arguments: Arguments
}

enum AssignmentTarget: Sendable {
    /// More than one name unpacks.
    case names([String])
    case namespaceAttribute(name: String, attribute: String)
}

struct Loop: Sendable {
    let targets: [String]
    let items: Expression
    let condition: Expression?
    let body: [Statement]
    let otherwise: [Statement]
}

struct Macro: Sendable {
    /// nil for the body of a call tag.
    let name: String?
    let parameters: [(name: String, standard: Expression?)]
    let body: [Statement]
    /// Which of the names that a macro finds without declaring them its body uses.
    let mentions: Set<Implicit>

    enum Implicit: String, Sendable, CaseIterable {
        case caller
        case varargs
        case kwargs
    }
}
