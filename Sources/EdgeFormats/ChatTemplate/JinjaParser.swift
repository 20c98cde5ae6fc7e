// Tokens to statements: recursive descent (pallets/jinja, parser.py). Expressions are in JinjaParser+Expressions. Names of
// filters and tests that the engine does not have are refused here, before a job starts. Nesting is bounded.

struct JinjaParser {
    let tokens: [JinjaToken]
    var position = 0
    private var nesting = 0
    private var loopDepth = 0
    /// What the macro that is being read, or the template, has used so far.
    var mentions: Set<Macro.Implicit> = []
    private(set) var hasGenerationMarkers = false
    /// Statements, brackets and prefix operators inside each other.
    private static let maximumNesting = 48

    static func template(
        _ source: String
    ) throws(ChatTemplateError) -> (statements: [Statement], hasGenerationMarkers: Bool) {
        var parser = JinjaParser(tokens: try JinjaLexer.tokens(source))
        let (statements, _) = try parser.body(until: [])
        return (statements, parser.hasGenerationMarkers)
    }

    private init(tokens: [JinjaToken]) { self.tokens = tokens }

    var kind: JinjaToken.Kind? { position < tokens.count ? tokens[position].kind : nil }
    var line: Int { position < tokens.count ? tokens[position].line : tokens.last?.line ?? 1 }

    func failure(_ expected: String) -> ChatTemplateError { .syntax(line: line, "expected \(expected)") }

    mutating func take(symbol: String) -> Bool {
        guard kind == .symbol(symbol) else { return false }
        position += 1
        return true
    }

    mutating func take(word: String) -> Bool {
        guard kind == .name(word) else { return false }
        position += 1
        return true
    }

    mutating func require(symbol: String) throws(ChatTemplateError) {
        guard take(symbol: symbol) else { throw failure("\"\(symbol)\"") }
    }

    private mutating func require(word: String) throws(ChatTemplateError) {
        guard take(word: word) else { throw failure("\"\(word)\"") }
    }

    private mutating func requireEnd(_ end: JinjaToken.Kind) throws(ChatTemplateError) {
        guard kind == end else { throw failure("the end of the tag") }
        position += 1
    }

    mutating func requireName() throws(ChatTemplateError) -> String {
        guard case .name(let name) = kind else { throw failure("a name") }
        position += 1
        return name
    }

    mutating func nested<Result>(
        _ parse: (inout JinjaParser) throws(ChatTemplateError) -> Result
    ) throws(ChatTemplateError) -> Result {
        guard nesting < Self.maximumNesting else { throw .nestedTooDeep(line: line, limit: Self.maximumNesting) }
        nesting += 1
        defer { nesting -= 1 }
        return try parse(&self)
    }

    /// Statements up to a block tag whose first word is in `ends`; the word is consumed, the rest of its tag is not.
    private mutating func body(until ends: [String]) throws(ChatTemplateError) -> ([Statement], end: String) {
        var statements: [Statement] = []
        while let kind {
            let line = self.line
            position += 1
            switch kind {
            case .text(let text):
                statements.append(Statement(kind: .text(text), line: line))
            case .variableBegin:
                let expression = try tupleOrExpression()
                try requireEnd(.variableEnd)
                statements.append(Statement(kind: .output(expression), line: line))
            case .blockBegin:
                let word = try requireName()
                if ends.contains(word) { return (statements, word) }
                let statement = try nested { (parser) throws(ChatTemplateError) in
                    try parser.statement(word, line: line)
                }
                statements.append(Statement(kind: statement, line: line))
            default:
                throw .syntax(line: line, "unexpected token")
            }
        }
        guard ends.isEmpty else { throw failure(ends.map { "{% \($0) %}" }.joined(separator: " or ")) }
        return (statements, "")
    }

    /// A body whose end tag holds nothing but its word.
    private mutating func body(closedBy end: String) throws(ChatTemplateError) -> [Statement] {
        let (statements, _) = try body(until: [end])
        try requireEnd(.blockEnd)
        return statements
    }

    private mutating func statement(_ word: String, line: Int) throws(ChatTemplateError) -> Statement.Kind {
        switch word {
        case "if": return try branch()
        case "for": return try loop()
        case "set": return try assignment()
        case "macro": return try .macro(macro(name: requireName(), end: "endmacro"))
        case "call":
            let parameters = kind == .symbol("(") ? try self.parameters() : []
            let callee = try expression()
            try requireEnd(.blockEnd)
            guard case .call = callee.kind else { throw .syntax(line: line, "call needs a call") }
            return .call(callee, caller: try macro(name: nil, parameters: parameters, end: "endcall"))
        case "filter":
            let filters = try filterCalls(first: filterCall())
            try requireEnd(.blockEnd)
            return .filterBlock(filters, body: try body(closedBy: "endfilter"))
        case "generation":
            try requireEnd(.blockEnd)
            hasGenerationMarkers = true
            return .generation(try outsideLoops { (parser) throws(ChatTemplateError) in
                try parser.body(closedBy: "endgeneration")
            })
        case "with": return try with()
        case "break", "continue":
            guard loopDepth > 0 else { throw .syntax(line: line, "\(word) outside a loop") }
            try requireEnd(.blockEnd)
            return word == "break" ? .breakLoop : .continueLoop
        default:
            throw .unsupported(line: line, feature: "statement \"\(word)\"")
        }
    }

    private mutating func branch() throws(ChatTemplateError) -> Statement.Kind {
        var branches: [(condition: Expression, body: [Statement])] = []
        while true {
            let condition = try tupleOrExpression()
            try requireEnd(.blockEnd)
            let (statements, end) = try body(until: ["elif", "else", "endif"])
            branches.append((condition, statements))
            switch end {
            case "elif": continue
            case "else":
                try requireEnd(.blockEnd)
                return .branch(branches, otherwise: try body(closedBy: "endif"))
            default:
                try requireEnd(.blockEnd)
                return .branch(branches, otherwise: [])
            }
        }
    }

    private mutating func names() throws(ChatTemplateError) -> [String] {
        let isParenthesised = take(symbol: "(")
        var names = [try requireName()]
        while take(symbol: ",") { names.append(try requireName()) }
        if isParenthesised { try require(symbol: ")") }
        return names
    }

    private mutating func loop() throws(ChatTemplateError) -> Statement.Kind {
        let targets = try names()
        try require(word: "in")
        // Without conditionals: `if` starts the loop's filter.
        let items = try or()
        let condition = take(word: "if") ? try expression() : nil
        if kind == .name("recursive") { throw .unsupported(line: line, feature: "recursive loop") }
        try requireEnd(.blockEnd)
        loopDepth += 1
        let (statements, end) = try body(until: ["else", "endfor"])
        loopDepth -= 1
        try requireEnd(.blockEnd)
        let otherwise = end == "else" ? try body(closedBy: "endfor") : []
        return .loop(
            Loop(targets: targets, items: items, condition: condition, body: statements, otherwise: otherwise))
    }

    private mutating func assignment() throws(ChatTemplateError) -> Statement.Kind {
        var names = try names()
        let target: AssignmentTarget
        if names.count == 1, take(symbol: ".") {
            target = .namespaceAttribute(name: names.removeLast(), attribute: try requireName())
        } else {
            target = .names(names)
        }
        if take(symbol: "=") {
            let value = try tupleOrExpression()
            try requireEnd(.blockEnd)
            return .set(target, value)
        }
        let filters = take(symbol: "|") ? try filterCalls(first: filterCall()) : []
        try requireEnd(.blockEnd)
        return .setBlock(target, filters: filters, body: try body(closedBy: "endset"))
    }

    private mutating func with() throws(ChatTemplateError) -> Statement.Kind {
        var assignments: [(names: [String], value: Expression)] = []
        while kind != .blockEnd {
            if !assignments.isEmpty { try require(symbol: ",") }
            let names = [try requireName()]
            try require(symbol: "=")
            assignments.append((names, try expression()))
        }
        try requireEnd(.blockEnd)
        return .with(assignments, body: try body(closedBy: "endwith"))
    }

    private mutating func macro(name: String, end: String) throws(ChatTemplateError) -> Macro {
        let parameters = try parameters()
        try requireEnd(.blockEnd)
        return try macro(name: name, parameters: parameters, end: end)
    }

    private mutating func macro(
        name: String?, parameters: [(name: String, standard: Expression?)], end: String
    ) throws(ChatTemplateError) -> Macro {
        let outer = mentions
        mentions = []
        let body = try outsideLoops { (parser) throws(ChatTemplateError) in try parser.body(closedBy: end) }
        defer { mentions.formUnion(outer) }
        return Macro(name: name, parameters: parameters, body: body, mentions: mentions)
    }

    /// A body that Jinja makes a function of: no loop control reaches out of it.
    private mutating func outsideLoops(
        _ parse: (inout JinjaParser) throws(ChatTemplateError) -> [Statement]
    ) throws(ChatTemplateError) -> [Statement] {
        let outer = loopDepth
        loopDepth = 0
        defer { loopDepth = outer }
        return try parse(&self)
    }

    private mutating func parameters() throws(ChatTemplateError) -> [(name: String, standard: Expression?)] {
        try require(symbol: "(")
        var parameters: [(name: String, standard: Expression?)] = []
        while !take(symbol: ")") {
            if !parameters.isEmpty {
                try require(symbol: ",")
                if take(symbol: ")") { break }
            }
            let name = try requireName()
            parameters.append((name, take(symbol: "=") ? try expression() : nil))
        }
        return parameters
    }

    mutating func filterCall() throws(ChatTemplateError) -> FilterCall {
        let line = self.line
        let name = try requireName()
        guard JinjaFilter.all[name] != nil else { throw .unsupported(line: line, feature: "filter \"\(name)\"") }
        return FilterCall(name: name, arguments: kind == .symbol("(") ? try arguments() : Arguments())
    }

    private mutating func filterCalls(first: FilterCall) throws(ChatTemplateError) -> [FilterCall] {
        var filters = [first]
        while take(symbol: "|") { filters.append(try filterCall()) }
        return filters
    }
}
