// What a disk may hold after the power went, as a model: of every file what was synced, and of what came after any part.
//
// - A write that was not synced is there, or is not, or is there in some of its sectors of 512 bytes; a later one may be there
//   without an earlier one. A file may have its new length with zeros where writes are missing.
// - A name that was made, moved or removed is so for sure once its directory was synced; before that each change is there or
//   not by itself. A move is there whole or not at all.
// - Nothing that was synced is lost. (A disk that lies about that cannot be built upon.)
import EdgeTestSupport
import Foundation

final class PowerLossDisk {
    private final class Node {
        enum Change {
            case write(offset: Int, bytes: [UInt8])
            case truncate(length: Int)
        }
        enum NameChange {
            case set(String, Node)
            case remove(String)
            /// To another directory.
            case moveAway(String, to: Node, as: String, Node)
            case move(from: String, to: String, Node)
            case exchange(String, Node, String, Node)
        }
        let isDirectory: Bool
        var synced: [UInt8] = []
        var unsynced: [Change] = []
        /// As running programs see them.
        var names: [String: Node] = [:]
        var syncedNames: [String: Node] = [:]
        var unsyncedNames: [NameChange] = []

        init(isDirectory: Bool) { self.isDirectory = isDirectory }
    }

    struct Random {
        private var generator: KillTests.SeededGenerator
        init(seed: UInt64) { generator = .init(state: seed) }
        mutating func below(_ bound: Int) -> Int { Int.random(in: 0..<bound, using: &generator) }
        mutating func happens(_ probability: Double) -> Bool { Double.random(in: 0..<1, using: &generator) < probability }
    }

    private let root = Node(isDirectory: true)
    /// Syncs that come to nothing: what the checks must notice.
    private let ignoresSyncs: Bool
    private static let sectorBytes = 512

    /// - Parameter directory: what is on the disk at first, all of it synced.
    init(_ directory: String, ignoresSyncs: Bool = false) throws {
        self.ignoresSyncs = ignoresSyncs
        try Self.load(directory, into: root)
    }

    private static func load(_ path: String, into node: Node) throws {
        for name in try FileManager.default.contentsOfDirectory(atPath: path) where !isVolatile(name) {
            var isDirectory: ObjCBool = false
            _ = FileManager.default.fileExists(atPath: path + "/" + name, isDirectory: &isDirectory)
            let child = Node(isDirectory: isDirectory.boolValue)
            if child.isDirectory { try load(path + "/" + name, into: child) } else {
                child.synced = Array(try Data(contentsOf: URL(filePath: path + "/" + name)))
            }
            node.names[name] = child
            node.syncedNames[name] = child
        }
    }

    /// SQLite's shared memory is made anew by whoever opens the store first.
    private static func isVolatile(_ name: String) -> Bool { name.hasSuffix("-shm") }

    // MARK: what programs do

    func apply(_ operation: FaultyFiles.Operation) throws {
        guard !Self.isVolatile(operation.path) else { return }
        switch operation.kind {
        case .create, .mkdir:
            let node = Node(isDirectory: operation.kind == .mkdir)
            try change(operation.path) { directory, name in
                directory.names[name] = node
                return .set(name, node)
            }
        case .write: try file(operation.path)?.unsynced.append(.write(offset: operation.offset, bytes: operation.bytes))
        case .truncate: try file(operation.path)?.unsynced.append(.truncate(length: operation.offset))
        case .sync: if !ignoresSyncs { sync(try node(operation.path)) }
        case .unlink, .rmdir:
            try change(operation.path) { directory, name in
                directory.names[name] = nil
                return .remove(name)
            }
        case .rename: try move(operation)
        case .exchange: try exchange(operation)
        case .link:
            let target = try node(operation.path)
            try change(operation.second) { directory, name in
                directory.names[name] = target
                return .set(name, target)
            }
        case .open, .chmod, .close, .list, .allocate: break
        }
    }

    private func sync(_ node: Node) {
        node.synced = Self.bytes(of: node)
        node.unsynced = []
        // A move that is there on one side is there on the other.
        for case .moveAway(_, let other, let name, let moved) in node.unsyncedNames { other.syncedNames[name] = moved }
        node.syncedNames = node.names
        node.unsyncedNames = []
    }

    private func move(_ operation: FaultyFiles.Operation) throws {
        let (from, oldName) = try place(operation.path), (to, newName) = try place(operation.second)
        guard let node = from.names.removeValue(forKey: oldName) else { throw TestFailure("there is no \(operation.path) to rename") }
        to.names[newName] = node
        if from === to {
            from.unsyncedNames.append(.move(from: oldName, to: newName, node))
        } else {
            to.unsyncedNames.append(.set(newName, node))
            from.unsyncedNames.append(.moveAway(oldName, to: to, as: newName, node))
        }
    }

    private func exchange(_ operation: FaultyFiles.Operation) throws {
        let (left, leftName) = try place(operation.path), (right, rightName) = try place(operation.second)
        guard left === right, let first = left.names[leftName], let second = right.names[rightName] else {
            throw TestFailure("\(operation.path) and \(operation.second) cannot be exchanged")
        }
        left.names[leftName] = second
        left.names[rightName] = first
        left.unsyncedNames.append(.exchange(leftName, second, rightName, first))
    }

    private func node(_ path: String) throws -> Node {
        var node = root
        for part in path.split(separator: "/") where part != "." {
            guard let next = node.names[String(part)] else { throw TestFailure("the record names \(path), which is not there") }
            node = next
        }
        return node
    }

    private func file(_ path: String) throws -> Node? {
        let node = try node(path)
        return node.isDirectory ? nil : node
    }

    private func place(_ path: String) throws -> (Node, String) {
        let parts = path.split(separator: "/").map(String.init)
        return (try node(parts.dropLast().joined(separator: "/")), parts[parts.count - 1])
    }

    private func change(_ path: String, _ body: (Node, String) -> Node.NameChange) throws {
        let (directory, name) = try place(path)
        directory.unsyncedNames.append(body(directory, name))
    }

    // MARK: what is left

    /// Writes one of the states that a power cut may leave.
    ///
    /// - Parameter survival: how likely each change is to be there that was not synced.
    func write(to directory: String, survival: Double, _ random: inout Random) throws {
        try write(root, to: directory, survival, &random)
    }

    private func write(_ node: Node, to path: String, _ survival: Double, _ random: inout Random) throws {
        guard node.isDirectory else {
            let bytes = Self.bytes(of: node, survival, &random)
            guard FileManager.default.createFile(atPath: path, contents: Data(bytes)) else { throw TestFailure("\(path) cannot be written") }
            return
        }
        guard mkdir(path, 0o700) == 0 else { throw TestFailure("mkdir \(path): errno \(errno)") }
        // The order of names, so that a seed gives the same disk again.
        for (name, child) in Self.names(of: node, survival, &random).sorted(by: { $0.key < $1.key }) {
            try write(child, to: path + "/" + name, survival, &random)
        }
    }

    private static func names(of node: Node, _ survival: Double, _ random: inout Random) -> [String: Node] {
        var names = node.syncedNames
        for change in node.unsyncedNames where random.happens(survival) {
            switch change {
            case .set(let name, let node): names[name] = node
            case .remove(let name): names[name] = nil
            // Never in neither: the old name goes after the new one is there.
            case .moveAway(let name, let other, let newName, let moved):
                if other.syncedNames[newName] === moved { names[name] = nil }
            case .move(let from, let to, let node):
                if names[from] === node { names[from] = nil }
                names[to] = node
            case .exchange(let left, let first, let right, let second):
                // Directories that were not there cannot have been exchanged.
                if names[left] === second && names[right] === first || names[left] == nil { continue }
                names[left] = first
                names[right] = second
            }
        }
        return names
    }

    private static func bytes(of node: Node) -> [UInt8] {
        var random = Random(seed: 0)
        return bytes(of: node, 1, tearing: 0, &random)
    }

    private static func bytes(of node: Node, _ survival: Double, tearing: Double = 0.3, _ random: inout Random) -> [UInt8] {
        var bytes = node.synced
        func extend(to length: Int) { if bytes.count < length { bytes += [UInt8](repeating: 0, count: length - bytes.count) } }
        for change in node.unsynced {
            guard random.happens(survival) else {
                // The length may be there without the bytes.
                if tearing > 0, case .write(let offset, let lost) = change, random.happens(0.25) { extend(to: offset + lost.count) }
                continue
            }
            switch change {
            case .truncate(let length):
                if length < bytes.count { bytes.removeLast(bytes.count - length) } else { extend(to: length) }
            case .write(let offset, let written):
                extend(to: offset + written.count)
                let isTorn = random.happens(tearing)
                var start = 0
                while start < written.count {
                    let end = min(written.count, ((offset + start) / sectorBytes + 1) * sectorBytes - offset)
                    if !isTorn || random.happens(0.5) {
                        bytes.replaceSubrange(offset + start..<offset + end, with: written[start..<end])
                    }
                    start = end
                }
            }
        }
        return bytes
    }
}
