// What a fuzzer runs: the product's entry points that read bytes from elsewhere, and what is claimed of them. The same
// functions are run by libFuzzer (`run`) and, over the committed corpora, by `swift test` (ReplayTests).
import Dispatch

struct FuzzTarget: Sendable {
    let name: String
    /// Bytes of the longest input that is tried.
    let longestInput: Int
    let heap: HeapClaim
    /// Of one run, with the sanitizers on.
    var seconds = 5
    /// All that may be thrown: the product's typed errors for such bytes.
    let errors: [any Error.Type]
    /// What runs share, as the next one wants it. Not measured.
    var prepare: @Sendable () throws -> Void = {}
    /// Gives the bytes to the product and looks at what comes back.
    let read: @Sendable (UnsafeRawBufferPointer) throws -> Void

    /// What a run may hold at once beyond what was held before it.
    struct HeapClaim: Sendable {
        let bytesPerByte: Int
        let fixedBytes: Int

        func limit(_ inputBytes: Int) -> Int { bytesPerByte * inputBytes + fixedBytes }
    }

    /// Nil when the claims hold; else what was broken.
    func broken(by bytes: UnsafeRawBufferPointer) -> String? {
        do {
            try prepare()
            try read(bytes)
            return nil
        } catch {
            guard errors.contains(where: { $0 == type(of: error) }) else { return "\(type(of: error)): \(error)" }
            // The text of an error is made from the same bytes.
            return "\(error)".isEmpty ? "\(type(of: error)) says nothing" : nil
        }
    }
}

extension FuzzTarget {
    /// Claims are about what is thrown, not about threads.
    static func waitFor(_ body: @escaping @Sendable () async throws -> Void) throws {
        final class Box: @unchecked Sendable { var result: Result<Void, any Error> = .success(()) }
        let box = Box(), done = DispatchSemaphore(value: 0)
        Task.detached {
            do { try await body() } catch { box.result = .failure(error) }
            done.signal()
        }
        done.wait()
        try box.result.get()
    }
}

/// A property that does not hold.
struct BrokenClaim: Error {
    let claim: String

    static func unless(_ holds: Bool, _ claim: @autoclosure () -> String) throws {
        if !holds { throw BrokenClaim(claim: claim()) }
    }
}

/// An input of several parts.
enum Parts {
    /// Parts end at a zero byte, the last at the end.
    static func ofText(_ bytes: UnsafeRawBufferPointer, most: Int) -> [[UInt8]] {
        bytes.split(separator: 0, maxSplits: most - 1, omittingEmptySubsequences: false).map { Array($0) }
    }

    /// Each begins with its length in two bytes, little-endian; one that is longer than what is left is what is left.
    static func withLengths(_ bytes: UnsafeRawBufferPointer, most: Int) -> [[UInt8]] {
        var parts: [[UInt8]] = []
        var rest = bytes[...]
        while parts.count < most, rest.count >= 2 {
            let count = Int(rest[rest.startIndex]) | Int(rest[rest.startIndex + 1]) << 8
            rest = rest.dropFirst(2)
            parts.append(Array(rest.prefix(count)))
            rest = rest.dropFirst(count)
        }
        return parts
    }
}
