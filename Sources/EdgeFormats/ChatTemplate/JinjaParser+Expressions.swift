// Expressions, with Jinja's precedences, loosest first: conditional, or, and, not, comparison, sum, `~`, product, power,
// sign, then filters and tests. Every node is checked against `Expression.maximumDepth`.

extension JinjaParser {
    private func node(_ kind: Expression.Kind, over children: [Expression] = []) throws(ChatTemplateError) -> Expression
    {
        let depth = 1 + (children.map(\.depth).max() ?? 0)
        guard depth <= Expression.maximumDepth else {
            throw .nestedTooDeep(line: line, limit: Expression.maximumDepth)
        }
        return Expression(kind: kind, depth: depth)
    }

    /// `a, b` without brackets is a tuple.
    mutating func tupleOrExpression() throws(ChatTemplateError) -> Expression {
        let first = try expression()
        guard kind == .symbol(",") else { return first }
        var items = [first]
        while take(symbol: ",") {
            if kind == .blockEnd || kind == .variableEnd || kind == .symbol(")") || kind == .symbol("]") { break }
            items.append(try expression())
        }
        return try node(.tuple(items), over: items)
    }

    mutating func expression() throws(ChatTemplateError) -> Expression {
        try nested { (parser) throws(ChatTemplateError) in try parser.conditional() }
    }

    private mutating func conditional() throws(ChatTemplateError) -> Expression {
        var value = try or()
        while take(word: "if") {
            let condition = try or()
            let otherwise = take(word: "else") ? try expression() : nil
            value = try node(
                .conditional(condition: condition, then: value, otherwise: otherwise),
                over: [value, condition] + (otherwise.map { [$0] } ?? []))
        }
        return value
    }

    mutating func or() throws(ChatTemplateError) -> Expression {
        var left = try and()
        while take(word: "or") {
            let right = try and()
            left = try node(.or(left, right), over: [left, right])
        }
        return left
    }

    private mutating func and() throws(ChatTemplateError) -> Expression {
        var left = try not()
        while take(word: "and") {
            let right = try not()
            left = try node(.and(left, right), over: [left, right])
        }
        return left
    }

    private mutating func not() throws(ChatTemplateError) -> Expression {
        guard take(word: "not") else { return try comparison() }
        let operand = try nested { (parser) throws(ChatTemplateError) in try parser.not() }
        return try node(.not(operand), over: [operand])
    }

    private mutating func comparison() throws(ChatTemplateError) -> Expression {
        let left = try binary(precedence: 0)
        var rest: [(Comparison, Expression)] = []
        while let comparison = takeComparison() { rest.append((comparison, try binary(precedence: 0))) }
        guard !rest.isEmpty else { return left }
        return try node(.comparison(left, rest), over: [left] + rest.map(\.1))
    }

    private mutating func takeComparison() -> Comparison? {
        switch kind {
        case .symbol(let symbol):
            guard let comparison = Comparison(rawValue: symbol) else { return nil }
            position += 1
            return comparison
        case .name("in"):
            position += 1
            return .contained
        case .name("not"):
            guard position + 1 < tokens.count, tokens[position + 1].kind == .name("in") else { return nil }
            position += 2
            return .notContained
        default: return nil
        }
    }

    /// Loosest first. Jinja's order: `~` binds tighter than `+`.
    private static let binaryOperators: [[BinaryOperator]] = [
        [.add, .subtract], [.concatenate], [.multiply, .divide, .floorDivide, .remainder], [.power],
    ]

    private mutating func binary(precedence: Int) throws(ChatTemplateError) -> Expression {
        guard precedence < Self.binaryOperators.count else { return try unary() }
        var left = try binary(precedence: precedence + 1)
        while case .symbol(let symbol) = kind, let operation = BinaryOperator(rawValue: symbol),
            Self.binaryOperators[precedence].contains(operation)
        {
            position += 1
            let right = try binary(precedence: precedence + 1)
            left = try node(.binary(operation, left, right), over: [left, right])
        }
        return left
    }

    /// A sign binds tighter than everything but `.`, `[]` and calls; filters and tests apply to what it gives.
    private mutating func unary() throws(ChatTemplateError) -> Expression {
        try filtersAndTests(of: try signed())
    }

    private mutating func signed() throws(ChatTemplateError) -> Expression {
        if take(symbol: "-") {
            let operand = try nested { (parser) throws(ChatTemplateError) in try parser.signed() }
            return try node(.negated(operand), over: [operand])
        }
        if take(symbol: "+") {
            let operand = try nested { (parser) throws(ChatTemplateError) in try parser.signed() }
            return try node(.positive(operand), over: [operand])
        }
        return try postfix(of: try primary())
    }

    private mutating func postfix(of primary: Expression) throws(ChatTemplateError) -> Expression {
        var value = primary
        while true {
            if take(symbol: ".") {
                if case .int(let index) = kind {
                    position += 1
                    value = try node(.item(value, try node(.literal(.int(index)))), over: [value])
                } else {
                    value = try node(.attribute(value, try requireName()), over: [value])
                }
            } else if take(symbol: "[") {
                value = try subscripted(value)
            } else if kind == .symbol("(") {
                value = try call(value)
            } else {
                return value
            }
        }
    }

    private mutating func call(_ callee: Expression) throws(ChatTemplateError) -> Expression {
        let arguments = try arguments()
        return try node(.call(callee, arguments), over: [callee] + arguments.expressions)
    }

    private mutating func subscripted(_ value: Expression) throws(ChatTemplateError) -> Expression {
        let start = kind == .symbol(":") ? nil : try tupleOrExpression()
        guard take(symbol: ":") else {
            try require(symbol: "]")
            guard let start else { throw failure("an index") }
            return try node(.item(value, start), over: [value, start])
        }
        let stop = kind == .symbol(":") || kind == .symbol("]") ? nil : try expression()
        let step = take(symbol: ":") && kind != .symbol("]") ? try expression() : nil
        try require(symbol: "]")
        return try node(
            .slice(value, start: start, stop: stop, step: step),
            over: [value] + [start, stop, step].compactMap { $0 })
    }

    private mutating func filtersAndTests(of operand: Expression) throws(ChatTemplateError) -> Expression {
        var value = operand
        while true {
            if take(symbol: "|") {
                let filter = try filterCall()
                value = try node(
                    .filter(value, name: filter.name, filter.arguments),
                    over: [value] + filter.arguments.expressions)
            } else if take(word: "is") {
                value = try test(of: value)
            } else if kind == .symbol("(") {
                value = try call(value)
            } else {
                return value
            }
        }
    }

    private mutating func test(of value: Expression) throws(ChatTemplateError) -> Expression {
        let isNegated = take(word: "not")
        let line = self.line
        let name = try requireName()
        guard JinjaTest.all[name] != nil else { throw .unsupported(line: line, feature: "test \"\(name)\"") }
        var arguments = Arguments()
        switch kind {
        case .symbol("("): arguments = try self.arguments()
        case .name("else"), .name("or"), .name("and"), .name("is"), .name("in"), .name("not"), .name("if"): break
        case .name, .string, .int, .double, .symbol("["), .symbol("{"):
            arguments.positional = [try postfix(of: try primary())]
        default: break
        }
        return try node(
            .test(value, name: name, arguments, isNegated: isNegated), over: [value] + arguments.expressions)
    }

    mutating func arguments() throws(ChatTemplateError) -> Arguments {
        try require(symbol: "(")
        var arguments = Arguments()
        var isFirst = true
        while !take(symbol: ")") {
            if !isFirst {
                try require(symbol: ",")
                if take(symbol: ")") { break }
            }
            isFirst = false
            if take(symbol: "**") {
                guard arguments.namedSpread == nil else { throw failure("one \"**\" only") }
                arguments.namedSpread = try expression()
            } else if take(symbol: "*") {
                guard arguments.spread == nil, arguments.namedSpread == nil else { throw failure("one \"*\" only") }
                arguments.spread = try expression()
            } else if case .name(let name) = kind, position + 1 < tokens.count, tokens[position + 1].kind == .symbol("=") {
                position += 2
                arguments.named.append((name, try expression()))
            } else {
                guard arguments.named.isEmpty, arguments.spread == nil, arguments.namedSpread == nil else {
                    throw failure("no positional argument after a named one")
                }
                arguments.positional.append(try expression())
            }
        }
        return arguments
    }

    private mutating func primary() throws(ChatTemplateError) -> Expression {
        guard let kind else { throw failure("an expression") }
        switch kind {
        case .name(let name):
            position += 1
            switch name {
            case "true", "True": return try node(.literal(.bool(true)))
            case "false", "False": return try node(.literal(.bool(false)))
            case "none", "None": return try node(.literal(.none))
            default:
                if let implicit = Macro.Implicit(rawValue: name) { mentions.insert(implicit) }
                return try node(.name(name))
            }
        case .string(var text):
            position += 1
            while case .string(let more) = self.kind {
                text += more
                position += 1
            }
            return try node(.literal(.string(text)))
        case .int(let value):
            position += 1
            return try node(.literal(.int(value)))
        case .double(let value):
            position += 1
            return try node(.literal(.double(value)))
        case .symbol("("):
            position += 1
            if take(symbol: ")") { return try node(.tuple([])) }
            let value = try tupleOrExpression()
            try require(symbol: ")")
            return value
        case .symbol("["):
            position += 1
            let items = try items(closedBy: "]")
            return try node(.list(items), over: items)
        case .symbol("{"):
            position += 1
            return try object()
        default:
            throw failure("an expression")
        }
    }

    private mutating func items(closedBy end: String) throws(ChatTemplateError) -> [Expression] {
        var items: [Expression] = []
        while !take(symbol: end) {
            if !items.isEmpty {
                try require(symbol: ",")
                if take(symbol: end) { break }
            }
            items.append(try expression())
        }
        return items
    }

    private mutating func object() throws(ChatTemplateError) -> Expression {
        var entries: [(key: Expression, value: Expression)] = []
        while !take(symbol: "}") {
            if !entries.isEmpty {
                try require(symbol: ",")
                if take(symbol: "}") { break }
            }
            let key = try expression()
            try require(symbol: ":")
            entries.append((key, try expression()))
        }
        return try node(.object(entries), over: entries.flatMap { [$0.key, $0.value] })
    }
}
