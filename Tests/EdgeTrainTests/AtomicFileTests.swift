import EdgeFormats
import EdgeTrain
import Glibc
import Testing

/// An empty directory that goes away with its last user.
final class ScratchDirectory {
    let path: String

    init() throws {
        var template = Array("/tmp/edgetune-test-XXXXXX".utf8CString)
        guard mkdtemp(&template) != nil else {
            throw FileError(operation: "mkdtemp", path: "/tmp", errno: errno)
        }
        path = template.withUnsafeBufferPointer { String(cString: $0.baseAddress!) }
    }

    deinit { try? AtomicDirectoryProbe.remove(path) }

    func read(_ name: String) throws -> [UInt8] { try ByteRegion.map(path: path + "/" + name).withBytes { Array($0) } }

    func names(_ sub: String = "") throws -> [String] { try AtomicDirectoryProbe.names(path + "/" + sub) }
}

/// Directory access of the tests' own, so that they do not check the code with itself.
enum AtomicDirectoryProbe {
    static func names(_ path: String) throws -> [String] {
        guard let stream = opendir(path) else { throw FileError(operation: "opendir", path: path, errno: errno) }
        defer { closedir(stream) }
        var names: [String] = []
        while let entry = readdir(stream) {
            names.append(
                withUnsafePointer(to: &entry.pointee.d_name) {
                    $0.withMemoryRebound(to: CChar.self, capacity: 256) { String(cString: $0) }
                })
        }
        return names.filter { $0 != "." && $0 != ".." }.sorted()
    }

    static func remove(_ path: String) throws {
        if unlink(path) == 0 || rmdir(path) == 0 { return }
        for name in try names(path) { try remove(path + "/" + name) }
        rmdir(path)
    }
}

private struct Interruption: Error, Equatable {}

struct AtomicFileTests {
    @Test func aFileIsReplacedAndNothingElseIsLeft() throws {
        let scratch = try ScratchDirectory()
        try AtomicFile.write(to: scratch.path + "/f", [1, 2])
        try AtomicFile.write(to: scratch.path + "/f", [3])
        #expect(try scratch.read("f") == [3])
        #expect(try scratch.names() == ["f"])
    }

    @Test func aFailedWriteLeavesTheOldFile() throws {
        let scratch = try ScratchDirectory()
        try AtomicFile.write(to: scratch.path + "/f", [1])
        #expect(throws: Interruption()) {
            try AtomicFile.write(to: scratch.path + "/f") { writer in
                try writer.write([2, 3])
                throw Interruption()
            }
        }
        #expect(try scratch.read("f") == [1])
        #expect(try scratch.names() == ["f"])
    }

    @Test func aFailedRenameRemovesTheTemporary() throws {
        let scratch = try ScratchDirectory()
        mkdir(scratch.path + "/f", 0o755)
        #expect(throws: FileError(operation: "rename", path: scratch.path + "/f", errno: EISDIR)) {
            try AtomicFile.write(to: scratch.path + "/f", [1])
        }
        #expect(try scratch.names() == ["f"])
    }

    @Test func aMissingDirectoryIsNamed() {
        let error = #expect(throws: FileError.self) { try AtomicFile.write(to: "/tmp/edgetune-none/f", [1]) }
        #expect(error?.operation == "open" && error?.errno == ENOENT)
        #expect(error.map { "\($0)".contains("No such file or directory") } == true)
    }

    @Test func aDirectoryIsPublishedAndExchanged() throws {
        let scratch = try ScratchDirectory()
        for version in [1, 2] as [UInt8] {
            try DirectoryPublish.publish(to: scratch.path + "/d") { staging in
                try staging.write("v\(version)", [version])
            }
            #expect(try scratch.names("d") == ["v\(version)"])
        }
        #expect(try scratch.names() == ["d"])
    }

    @Test func aFailedPublishLeavesTheOldDirectory() throws {
        let scratch = try ScratchDirectory()
        try DirectoryPublish.publish(to: scratch.path + "/d") { try $0.write("old", [1]) }
        #expect(throws: Interruption()) {
            try DirectoryPublish.publish(to: scratch.path + "/d") { staging in
                try staging.write("new", [2])
                throw Interruption()
            }
        }
        #expect(try scratch.names("d") == ["old"])
        #expect(try scratch.names() == ["d"])
    }

    @Test func onlyLeftoversAreRemoved() throws {
        let scratch = try ScratchDirectory()
        mkdir(scratch.path + "/d.tmp-12-0", 0o755)
        for name in ["d.tmp-12-0/x", "f.tmp-9-3", "keep", "a.tmp-file", ".tmp-1-0"] {
            try AtomicFile.write(to: scratch.path + "/" + name, [0])
        }
        #expect(try DirectoryPublish.removeLeftovers(in: scratch.path) == ["d.tmp-12-0", "f.tmp-9-3"])
        #expect(try scratch.names() == [".tmp-1-0", "a.tmp-file", "keep"])
    }
}
