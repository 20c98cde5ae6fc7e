// Loops. The `if` of a loop is evaluated when its item's turn comes, as Jinja's generators do, and earlier only for what
// asks about later items (`loop.last`, `loop.length`). An iteration over a turn of the conversation leaves in the trace
// what it wrote.

struct LoopState {
    /// Counts the loops of a rendering.
    let id: Int
    let loop: Loop
    let source: [JinjaValue]
    /// How many of `source` were put to the loop's condition.
    var tried = 0
    /// Those that passed.
    var items: [JinjaValue] = []
    var index = 0
    /// Frames outside.
    let frameCount: Int
    /// What `loop.changed` was last given.
    var changedValue: JinjaValue?
}

extension JinjaEvaluator {
    mutating func run(_ loop: Loop) throws(ChatTemplateError) -> Flow {
        let source = try self.items(of: try value(loop.items))
        try spend(source.count)
        loopsBegun += 1
        var state = LoopState(id: loopsBegun, loop: loop, source: source, frameCount: frames.count)
        if loop.condition == nil {
            state.items = source
            state.tried = source.count
        }
        loops.append(state)
        defer { loops.removeLast() }
        let number = loops.count - 1
        let handle = JinjaValue.handle(JinjaHandle(referent: .loop(state.id)))
        var index = 0
        var hasFinished = false
        while try hasItem(index, inLoop: number) {
            loops[number].index = index
            let item = loops[number].items[index]
            frames.append(["loop": handle])
            defer { frames.removeLast() }
            try bind(loop.targets, to: item)
            let start = output.utf8.count
            let flow = try run(loop.body)
            noteTurn(item, wrote: start..<output.utf8.count, inLoop: number)
            if flow == .breakLoop { break }
            if flow == .next { hasFinished = true }
            index += 1
        }
        // To Jinja a loop whose every iteration was cut short had none.
        if hasFinished { return .next }
        frames.append([:])
        defer { frames.removeLast() }
        // A loop control in here is of the loop outside.
        return try run(loop.otherwise)
    }

    private mutating func noteTurn(_ item: JinjaValue, wrote range: Range<Int>, inLoop number: Int) {
        guard case .object(let object) = item, let turn = object.turn, !isCapturing, !range.isEmpty else { return }
        // A loop over turns inside a turn belongs to that turn.
        for outer in loops[..<number] {
            if case .object(let object) = outer.items[outer.index], object.turn != nil { return }
        }
        trace.turns.append((turn, range))
    }

    /// Puts items to the condition until one has that index.
    private mutating func hasItem(_ index: Int, inLoop number: Int) throws(ChatTemplateError) -> Bool {
        while loops[number].items.count <= index, loops[number].tried < loops[number].source.count {
            let item = loops[number].source[loops[number].tried]
            loops[number].tried += 1
            let passes: Bool
            if let condition = loops[number].loop.condition {
                let outer = frames
                frames = Array(frames.prefix(loops[number].frameCount)) + [[:]]
                defer { frames = outer }
                try bind(loops[number].loop.targets, to: item)
                passes = try value(condition).isTruthy
            } else {
                passes = true
            }
            if passes {
                try charge(values: 1)
                loops[number].items.append(item)
            }
        }
        return index < loops[number].items.count
    }

    func loopNumber(_ id: Int) throws(ChatTemplateError) -> Int {
        guard let number = loops.lastIndex(where: { $0.id == id }) else { throw failure("the loop has ended") }
        return number
    }

    mutating func loopAttribute(_ name: String, ofLoop id: Int) throws(ChatTemplateError) -> JinjaValue {
        let number = try loopNumber(id)
        let index = loops[number].index
        switch name {
        case "index": return .int(index + 1)
        case "index0": return .int(index)
        case "revindex", "revindex0", "length":
            _ = try hasItem(Int.max, inLoop: number)
            let count = loops[number].items.count
            return .int(name == "length" ? count : count - index - (name == "revindex" ? 0 : 1))
        case "first": return .bool(index == 0)
        case "last": return .bool(!(try hasItem(index + 1, inLoop: number)))
        // Only recursive loops go deeper.
        case "depth": return .int(1)
        case "depth0": return .int(0)
        case "previtem": return index > 0 ? loops[number].items[index - 1] : .undefined
        case "nextitem":
            return try hasItem(index + 1, inLoop: number) ? loops[number].items[index + 1] : .undefined
        case "cycle", "changed":
            methods.append((.handle(JinjaHandle(referent: .loop(id))), name))
            return .handle(JinjaHandle(referent: .method(methods.count - 1)))
        default: return .undefined
        }
    }

    mutating func loopMethod(
        _ name: String, ofLoop id: Int, _ arguments: CallArguments
    ) throws(ChatTemplateError) -> JinjaValue? {
        let number = try loopNumber(id)
        switch name {
        case "cycle":
            guard !arguments.positional.isEmpty else { throw failure("cycle needs values") }
            return arguments.positional[loops[number].index % arguments.positional.count]
        case "changed":
            let value = try charged(arguments.positional, kind: .tuple)
            let isSame = try loops[number].changedValue.map { (old) throws(ChatTemplateError) in try equal(old, value) }
            loops[number].changedValue = value
            return .bool(!(isSame ?? false))
        default: return nil
        }
    }
}

/// What is left of a generator.
struct IteratorState {
    let items: [JinjaValue]
    var position = 0
    /// What reading beyond the last item throws.
    let failure: ChatTemplateError?
}

extension JinjaEvaluator {
    /// A generator of the results of `transform`, nil of which are left out. What goes wrong is thrown when the generator
    /// is read, as lazy evaluation would; a limit is a limit at once.
    mutating func generator(
        over value: JinjaValue,
        _ transform: (inout JinjaEvaluator, JinjaValue) throws(ChatTemplateError) -> JinjaValue?
    ) throws(ChatTemplateError) -> JinjaValue {
        var results: [JinjaValue] = []
        do throws(ChatTemplateError) {
            for item in try items(of: value) {
                try charge(values: 1)
                if let result = try transform(&self, item) { results.append(result) }
            }
        } catch {
            guard case .evaluation = error else { throw error }
            return try generator(results, failure: error)
        }
        return try generator(results)
    }

    mutating func generator(
        _ items: [JinjaValue], failure: ChatTemplateError? = nil
    ) throws(ChatTemplateError) -> JinjaValue {
        try charge(values: 2)
        iterators.append(IteratorState(items: items, failure: failure))
        return .handle(JinjaHandle(referent: .iterator(iterators.count - 1)))
    }

    /// Takes the next item off a generator; nil at its end.
    mutating func next(ofIterator number: Int) throws(ChatTemplateError) -> JinjaValue? {
        let state = iterators[number]
        guard state.position < state.items.count else {
            if let failure = state.failure { throw failure }
            return nil
        }
        iterators[number].position += 1
        return state.items[state.position]
    }

    /// What iterating over the value gives: of an object its keys, of a string its scalars, of a generator its rest.
    mutating func items(of value: JinjaValue) throws(ChatTemplateError) -> [JinjaValue] {
        switch value {
        case .undefined: return []
        case .list(let list): return list.items
        case .object(let object):
            try charge(values: object.count)
            return (0..<object.count).map { object.key(at: $0) }
        case .string(let text), .markup(let text):
            try read(text)
            try charge(values: text.unicodeScalars.count)
            return text.unicodeScalars.map { .string(String($0)) }
        case .handle(let handle):
            guard case .iterator(let number) = handle.referent else { break }
            let state = iterators[number]
            iterators[number].position = state.items.count
            if let failure = state.failure { throw failure }
            return state.position == 0 ? state.items : Array(state.items[state.position...])
        default: break
        }
        throw failure("\(value.typeName) cannot be iterated over")
    }
}
