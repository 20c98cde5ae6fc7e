// A thread of this process that is another user to the kernel, and so to whoever it connects to. Needs root.
import EdgeWire
import Foundation

package struct OtherUser: Sendable {
    package static let isPossible = getuid() == 0

    package let uid: UInt32
    /// The only group that he is in.
    package let gid: UInt32

    package init(uid: UInt32, group: String) {
        self.uid = uid
        gid = getgrnam(group)?.pointee.gr_gid ?? 65534
    }

    package func run<Value: Sendable>(_ body: @escaping @Sendable () throws -> Value) throws -> Value {
        let outcome = Outcome<Value>()
        let ended = DispatchSemaphore(value: 0)
        Thread.detachNewThread { [self] in
            outcome.value = Result {
                try become()
                return try body()
            }
            ended.signal()
        }
        ended.wait()
        guard let value = outcome.value else { throw TestFailure("nothing ran") }
        return try value.get()
    }

    private func become() throws {
        // libc's functions would change all threads of the process; the calls themselves change the calling one.
        typealias Call = @convention(c) (Int, Int, Int, Int) -> Int
        guard let symbol = dlsym(nil, "syscall") else { throw TestFailure("there is no syscall") }
        let call = unsafeBitCast(symbol, to: Call.self)
        #if arch(x86_64)
        let (setgroups, setresgid, setresuid) = (116, 119, 117)
        #else
        let (setgroups, setresgid, setresuid) = (159, 149, 147)
        #endif
        let (uid, gid) = (Int(uid), Int(gid))
        guard call(setgroups, 0, 0, 0) == 0, call(setresgid, gid, gid, gid) == 0, call(setresuid, uid, uid, uid) == 0 else {
            throw TestFailure("this thread cannot become uid \(uid)")
        }
    }
}

/// Written by the one thread before it signals, and read after that.
private final class Outcome<Value>: @unchecked Sendable {
    var value: Result<Value, any Error>?
}

extension DaemonProcess {
    /// As `call`, by another user.
    package func call(
        as user: OtherUser, _ method: String, _ path: String, headers: [String: String] = [:], body: Data? = nil
    ) throws -> HTTPAnswer {
        let socket = socket
        return try user.run {
            let descriptor = try RawHTTP.connect(socket)
            defer { close(descriptor) }
            RawHTTP.send(RawHTTP.request(method, path, headers: headers, body: body), to: descriptor)
            return try RawHTTP.answer(try RawHTTP.readAll(descriptor))
        }
    }

    package func post(as user: OtherUser, _ path: String, _ value: some Encodable) throws -> HTTPAnswer {
        try call(as: user, "POST", path, body: try Wire.encoder().encode(value))
    }
}
