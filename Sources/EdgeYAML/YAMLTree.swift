// Text to a tree of lines and values. The only file that imports Yams. Knows limits, no keys and no types.
// Anchors together with aliases are refused before Yams sees the text: nine lines of them can stand for 10⁹ nodes,
// and Yams compares keys by walking all of them.
import Foundation
import Yams

/// What is wrong with a YAML file, and where.
package struct YAMLProblem: Error, Equatable, Sendable, CustomStringConvertible {
    package let fileName: String
    /// From 1; nil when the file as a whole is meant.
    package let line: Int?
    package let message: String

    package var description: String {
        line.map { "\(fileName): line \($0): \(message)" } ?? "\(fileName): \(message)"
    }
}

package enum YAMLLimit {
    package static let bytes = 64 << 10
    package static let depth = 16
    package static let nodes = 4096
}

/// One value of the file with the line that it starts on.
struct YAMLTree: Sendable {
    struct Entry: Sendable {
        let key: String
        let line: Int
        let value: YAMLTree
    }
    enum Value: Sendable {
        /// `quoted`: written as text, so never a number, a truth value or null.
        case scalar(String, quoted: Bool)
        case sequence([YAMLTree])
        case mapping([Entry])
    }
    let line: Int
    let value: Value

    static let null = YAMLTree(line: 1, value: .scalar("", quoted: false))

    var isNull: Bool {
        guard case .scalar(let text, quoted: false) = value else { return false }
        return text.isEmpty || text == "~" || text == "null" || text == "Null" || text == "NULL"
    }

    /// The value as a person would name it in an error: `"fast"`, `a list`, `a mapping`.
    var found: String {
        switch value {
        case .scalar(let text, _): isNull ? "nothing" : "\"\(text.prefix(64))\""
        case .sequence: "a list"
        case .mapping: "a mapping"
        }
    }
}

extension YAMLTree {
    init(text: String, fileName: String) throws(YAMLProblem) {
        func problem(_ line: Int?, _ message: String) -> YAMLProblem {
            YAMLProblem(fileName: fileName, line: line, message: message)
        }
        guard text.utf8.count <= YAMLLimit.bytes else {
            throw problem(nil, "\(text.utf8.count) bytes are too many; the limit is \(YAMLLimit.bytes)")
        }
        if let line = Self.firstAliasLine(text) {
            throw problem(line, "anchors (&) and aliases (*) are not allowed; write the value out")
        }
        let root: Node?
        do {
            root = try Parser(yaml: text, encoding: .utf8).singleRoot()
        } catch let error as YamlError {
            throw Self.problem(of: error, text: text, fileName: fileName)
        } catch {
            throw problem(nil, "\(error)")
        }
        guard let root else {
            self = .null
            return
        }
        var count = 0
        self = try Self.tree(root, depth: 0, count: &count, fileName: fileName)
    }

    private static func tree(
        _ node: Node, depth: Int, count: inout Int, fileName: String
    ) throws(YAMLProblem) -> YAMLTree {
        let line = node.mark?.line ?? 1
        count += 1
        guard depth <= YAMLLimit.depth else {
            throw YAMLProblem(fileName: fileName, line: line, message: "nested deeper than \(YAMLLimit.depth) levels")
        }
        guard count <= YAMLLimit.nodes else {
            throw YAMLProblem(fileName: fileName, line: line, message: "more than \(YAMLLimit.nodes) values")
        }
        switch node {
        case .scalar(let scalar):
            return YAMLTree(line: line, value: .scalar(scalar.string, quoted: scalar.style != .plain))
        case .sequence(let sequence):
            var items: [YAMLTree] = []
            for item in sequence {
                items.append(try tree(item, depth: depth + 1, count: &count, fileName: fileName))
            }
            return YAMLTree(line: line, value: .sequence(items))
        case .mapping(let mapping):
            var entries: [Entry] = []
            for (key, value) in mapping {
                let keyLine = key.mark?.line ?? line
                guard case .scalar(let scalar) = key else {
                    throw YAMLProblem(fileName: fileName, line: keyLine, message: "a key must be a plain word")
                }
                entries.append(
                    Entry(
                        key: scalar.string, line: keyLine,
                        value: try tree(value, depth: depth + 1, count: &count, fileName: fileName)))
            }
            return YAMLTree(line: line, value: .mapping(entries))
        case .alias:
            throw YAMLProblem(fileName: fileName, line: line, message: "aliases (*) are not allowed")
        }
    }

    /// The line of the first alias when the text may have both an anchor and an alias. It may also be wrong about a
    /// quoted text that looks like both; it never misses one, because quotes are not interpreted.
    private static func firstAliasLine(_ text: String) -> Int? {
        var line = 1
        var aliasLine: Int?
        var hasAnchor = false
        var before: Unicode.Scalar = "\n"
        var scalars = text.unicodeScalars.makeIterator()
        var current = scalars.next()
        while let scalar = current {
            let after = scalars.next()
            let starts = before.properties.isWhitespace || "[{,:-?\u{FEFF}".unicodeScalars.contains(before)
            let named = after.map {
                $0.properties.isAlphabetic || $0.properties.numericType != nil || $0 == "_" || $0 == "-"
            }
            if starts, named == true {
                if scalar == "&" { hasAnchor = true }
                if scalar == "*" { aliasLine = aliasLine ?? line }
            }
            if scalar == "\n" { line += 1 }
            before = scalar
            current = after
        }
        return hasAnchor ? aliasLine : nil
    }

    private static func problem(of error: YamlError, text: String, fileName: String) -> YAMLProblem {
        switch error {
        case .scanner(let context, let problem, let mark, _), .parser(let context, let problem, let mark, _),
            .composer(let context, let problem, let mark, _):
            let reason = context.map { "\($0.text): \(problem)" } ?? problem
            return YAMLProblem(fileName: fileName, line: mark.line, message: reason)
        case .duplicatedKeysInMapping(let duplicates, let context):
            let key = duplicates.first ?? ""
            let lines = text.split(separator: "\n", omittingEmptySubsequences: false)
            let again = lines.indices.last { index in
                let words = lines[index].drop { " -\"'{".contains($0) }
                return index >= context.mark.line && words.hasPrefix(key)
            }
            return YAMLProblem(
                fileName: fileName, line: again.map { $0 + 1 } ?? context.mark.line,
                message: "\"\(key)\" is given twice; the first is in line \(context.mark.line)")
        case .reader(let problem, _, _, _):
            return YAMLProblem(fileName: fileName, line: nil, message: problem)
        default:
            return YAMLProblem(fileName: fileName, line: nil, message: "\(error)")
        }
    }
}
