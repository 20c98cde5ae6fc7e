// Clients that are many, slow or silent: the daemon answers the others, and holds no more memory for it.
import EdgeTestSupport
import EdgeWire
import Foundation
import Testing

import edgetuned

struct ConnectionTableTests {
    static func table() -> ConnectionTable {
        var limits = ConnectionTable.Limits()
        (limits.all, limits.perUser, limits.reserved) = (6, 3, 2)
        return ConnectionTable(limits)
    }

    static func admit(_ uid: UInt32, _ table: inout ConnectionTable, isAdmin: Bool = false) -> (id: Int, evicted: Int?)? {
        guard case .admitted(let id, let evicted) = table.admit(uid, isAdmin: isAdmin) else { return nil }
        return (id, evicted)
    }

    @Test func aUsersNewConnectionTakesThePlaceOfHisLongestWaitingOne() throws {
        var table = Self.table()
        let own = (0..<3).compactMap { _ in Self.admit(1, &table)?.id }
        table.began(own[0])
        #expect(Self.admit(1, &table)?.evicted == own[1])
        // It waits again, and longer than nobody.
        table.ended(own[0])
        #expect(Self.admit(1, &table)?.evicted == own[2])
        #expect(table.count == 3 && table.contains(own[0]))
    }

    @Test func whoUsesAllOfHisConnectionsIsToldSo() {
        var table = Self.table()
        for _ in 0..<3 {
            guard let id = Self.admit(1, &table)?.id else { continue }
            table.began(id)
        }
        guard case .refused(let why) = table.admit(1, isAdmin: true) else {
            Issue.record("admitted")
            return
        }
        #expect(why == "3 connections of uid 1 are in use, the limit of a user is 3")
    }

    @Test func aPartIsForNewcomersAndAdmins() {
        var table = Self.table()
        for _ in 0..<3 { table.began(Self.admit(1, &table)?.id ?? 0) }
        table.began(Self.admit(2, &table)?.id ?? 0)
        // Four of six: the rest is reserved, and nobody waits who could go.
        #expect(Self.admit(2, &table) == nil)
        #expect(Self.admit(3, &table) != nil)
        #expect(Self.admit(2, &table, isAdmin: true) != nil)
        #expect(table.count == 6)
    }

    @Test func whenAllAreTakenTheLargestHolderMakesRoom() {
        var table = Self.table()
        let most = (0..<3).compactMap { _ in Self.admit(1, &table)?.id }
        for uid in UInt32(2)...4 { _ = Self.admit(uid, &table) }
        #expect(table.count == 6)
        #expect(Self.admit(5, &table)?.evicted == most[0])
        // Who has one already and is no admin, gives his own.
        let second = Self.admit(4, &table)
        #expect(second?.evicted != nil && table.count == 6)
    }

    @Test func anyOrderKeepsTheCountsRight() {
        var (table, open) = (Self.table(), Set<Int>())
        var random = KillTests.SeededGenerator(state: 7)
        for _ in 0..<20_000 {
            if Bool.random(using: &random), let id = open.randomElement(using: &random) {
                switch Int.random(in: 0..<3, using: &random) {
                case 0: table.began(id)
                case 1: table.ended(id)
                default:
                    table.closed(id)
                    open.remove(id)
                }
            } else if let (id, evicted) = Self.admit(UInt32.random(in: 1...5, using: &random), &table) {
                open.insert(id)
                if let evicted { #expect(open.remove(evicted) != nil) }
            }
            #expect(table.count == open.count && table.count <= 6)
        }
    }
}

@Suite(.serialized, .enabled(if: OtherUser.isPossible)) struct FloodTests {
    /// Connections of `user`, each of which has sent `text`.
    static func open(_ count: Int, _ text: String, to socket: String, as user: OtherUser) throws -> [Int32] {
        try user.run {
            try (0..<count).map { _ in
                let descriptor = try RawHTTP.connect(socket)
                RawHTTP.send(Data(text.utf8), to: descriptor)
                return descriptor
            }
        }
    }

    /// Whether the other end closes before `limit` seconds are over.
    static func isClosed(_ descriptor: Int32, within limit: Double, sending: String?) -> Bool {
        let start = ContinuousClock.now
        var byte = [UInt8](repeating: 0, count: 1)
        while ContinuousClock.now - start < .seconds(limit) {
            let got = recv(descriptor, &byte, 1, Int32(MSG_DONTWAIT))
            if got == 0 || got < 0 && errno == ECONNRESET { return true }
            if let sending { RawHTTP.send(Data(sending.utf8), to: descriptor) }
            usleep(200_000)
        }
        return false
    }

    static func residentBytes(_ daemon: DaemonProcess) throws -> Int {
        let status = try String(contentsOfFile: "/proc/\(daemon.process.processIdentifier)/status", encoding: .utf8)
        let line = try #require(status.split(separator: "\n").first { $0.hasPrefix("VmRSS:") })
        return (Int(line.split(separator: " ")[1]) ?? 0) << 10
    }

    static func seconds(_ work: () throws -> Void) rethrows -> Double {
        let start = ContinuousClock.now
        try work()
        return (ContinuousClock.now - start) / .seconds(1)
    }

    @Test("1,000 connections of one user that say half a request leave the daemon to the others, and to him")
    func aThousandHalfOpenConnections() throws {
        var limits = rlimit()
        let openFiles = __rlimit_resource_t(RLIMIT_NOFILE.rawValue)
        getrlimit(openFiles, &limits)
        limits.rlim_cur = min(limits.rlim_max, 8192)
        setrlimit(openFiles, &limits)
        let directory = try TemporaryDirectory()
        let daemon = try OwnershipTests.daemon(in: directory.path)
        for _ in 0..<50 { _ = try daemon.call("GET", Endpoint.status) }
        let before = try Self.residentBytes(daemon)
        let flood = try Self.open(1000, "GET /v1/status HTTP/1.1\r\nHost: x\r\nX-A: ", to: daemon.socket, as: OwnershipTests.anna)
        defer { for descriptor in flood { close(descriptor) } }
        var slowest = 0.0
        for user in [OwnershipTests.anna, OwnershipTests.ben, nil] {
            for _ in 0..<20 {
                slowest = max(
                    slowest,
                    try Self.seconds { () throws in
                        let answer =
                            try user.map { try daemon.call(as: $0, "GET", Endpoint.status) } ?? daemon.call("GET", Endpoint.status)
                        #expect(answer.status == 200)
                    })
            }
        }
        let grown = try Self.residentBytes(daemon) - before
        let files = try FileManager.default.contentsOfDirectory(atPath: "/proc/\(daemon.process.processIdentifier)/fd").count
        print("1,000 half-open: slowest status \(Int(slowest * 1000)) ms, +\(grown >> 10) KiB, \(files) descriptors")
        #expect(slowest < 10 && grown < 32 << 20 && files < 600)
    }

    @Test("1,000 connections that use what they have are refused with a reason, and others are not")
    func aThousandBusyConnections() throws {
        let directory = try TemporaryDirectory()
        let daemon = try OwnershipTests.daemon(in: directory.path)
        let before = try Self.residentBytes(daemon)
        // A body that does not come keeps a connection in use, once its head was read.
        let text = "POST /v1/plan HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\n{"
        var busy = try Self.open(256, text, to: daemon.socket, as: OwnershipTests.anna)
        defer { for descriptor in busy { close(descriptor) } }
        usleep(2_000_000)
        busy += try Self.open(744, text, to: daemon.socket, as: OwnershipTests.anna)
        let last = try RawHTTP.answer(RawHTTP.readAll(busy[999]))
        #expect(last.status == 429 && last.text.contains("limit of a user is 256"), "\(last.text)")
        #expect(last.headers["retry-after"] == "1")
        let took = try Self.seconds { () throws in
            #expect(try daemon.call(as: OwnershipTests.ben, "GET", Endpoint.status).status == 200)
            #expect(try daemon.call("GET", Endpoint.status).status == 200)
        }
        let grown = try Self.residentBytes(daemon) - before
        print("1,000 busy: two statuses \(Int(took * 1000)) ms, +\(grown >> 10) KiB")
        #expect(took < 10 && grown < 32 << 20)
    }

    @Test func whoIsSlowIsClosedAndNobodyWaitsForHim() throws {
        let directory = try TemporaryDirectory()
        let config = directory.path + "/c.yaml"
        try "".write(toFile: config, atomically: true, encoding: .utf8)
        let daemon = try DaemonProcess(in: directory.path, arguments: ["--config", config, "--client-seconds", "4"])
        let slow: [(String, String, String?)] = [
            ("half a head", "GET /v1/status HTT", nil),
            ("a head that trickles", "GET /v1/status HTTP/1.1\r\nX-A: ", "a"),
            ("nothing at all", "", nil),
            ("a body at a byte a time", "POST /v1/plan HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n\r\n", "x"),
            (
                "an upload at a byte a time",
                "PATCH \(Endpoint.blob(abc)) HTTP/1.1\r\nHost: x\r\nUpload-Offset: 0\r\nUpload-Length: 9000\r\n"
                    + "Content-Length: 9000\r\n\r\n", "x"
            ),
            // Answers that nobody takes: some 400 KiB of them.
            ("a thousand answers", String(repeating: "GET /v1/status HTTP/1.1\r\nHost: x\r\n\r\n", count: 1000), nil),
        ]
        for (what, text, more) in slow {
            let descriptor = try RawHTTP.connect(daemon.socket), start = ContinuousClock.now
            defer { close(descriptor) }
            RawHTTP.send(Data(text.utf8), to: descriptor)
            #expect(try Self.seconds { _ = try daemon.call("GET", Endpoint.status) } < 4, "\(what)")
            if what == "a thousand answers" {
                usleep(8_000_000)
                // What was sent before the end; a patient client would have got all.
                let got = try RawHTTP.readAll(descriptor)
                let answers = String(decoding: got, as: UTF8.self).components(separatedBy: "HTTP/1.1 200").count - 1
                #expect(answers > 0 && answers < 1000, "\(answers)")
            } else {
                #expect(Self.isClosed(descriptor, within: 60, sending: more), "\(what)")
                #expect(ContinuousClock.now - start > .seconds(3), "\(what)")
            }
        }
        // What came of the upload is kept, and can be gone on with.
        #expect(try daemon.call("GET", Endpoint.blob(abc)).decoded(BlobStatus.self).receivedBytes > 0)
        #expect(try daemon.call("GET", Endpoint.status).status == 200)
    }
}
