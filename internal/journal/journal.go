// SPDX-License-Identifier: Apache-2.0

// Package journal is the append-only file in which a process keeps what it must find
// again after a restart, change by change.
//
//	j, err := journal.Open(journal.Config{Path: path, Kind: "NSMREG", Version: 1, Noun: "registry file"}, replay)
//	…
//	err = j.Append(journal.Put, payload)
//	if j.Due() {
//		err = j.Rewrite(everything)
//	}
//
// A crash of the process loses nothing that Append has taken, one of the machine
// what has not reached the disk unless Sync is set. What a crash tears off at the end
// is cut off. A file of another version is set aside under another name, never
// deleted and never an error; damage anywhere else is one, unless the file is
// disposable.
//
// The file begins with its kind, a zero and its version; records follow:
//
//	uint32  length of the body
//	uint32  CRC-32C of the body
//	uint32  CRC-32C of the eight bytes above
//	body    one byte operation, then its payload
//
// Numbers are little endian. What the payloads are is the caller's business. The
// header has a sum of its own so that a damaged length is not mistaken for a torn
// end, and zeros are no header.
package journal

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"iter"
	"log/slog"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/openvwire/nsm/sdk/nserr"
)

const (
	headerSize = 12
	maxBody    = 16 << 20 // four times what a message may have
)

// Operation is what a record does.
type Operation byte

// The operations.
const (
	Put    Operation = 1
	Delete Operation = 2
)

// A file is rewritten when it has CompactMin bytes and is compactFactor times
// as long as after the last time: then most of it is history, and the work is
// a constant share of all writing. How much of a file that was opened is history
// is not known, hence it is due at once, or it would grow with every restart.
const (
	CompactMin    = 1 << 20
	compactFactor = 4
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// Config says which file it is.
type Config struct {
	Path    string
	Kind    string // six letters, with which the file begins
	Version byte   // of what is in it
	Noun    string // what to call it: "registry file"
	Sync    bool   // wait for the disk with every record

	// Lost is what it costs to begin with an empty file, for the log.
	Lost string
	// Disposable is a file that may be lost. One that is damaged, or none of this kind,
	// is set aside too, and nothing ever waits for the disk.
	Disposable bool

	Logger *slog.Logger // nil = slog.Default()
}

func (c *Config) magic() string { return c.Kind + "\x00" + string([]byte{c.Version}) }

// Journal is an open file. Its methods are called by one goroutine at a time. After an
// error it remains usable: what was written in part is cut off or overwritten.
type Journal struct {
	c    Config
	file *os.File // locked against other processes (flock) for as long as it is open

	size      int64 // end of the last whole record
	torn      bool  // there may be bytes after size
	compactAt int64 // size at which the next rewriting is due
}

// errVersion and errDamaged are why the contents of a file cannot be used.
var (
	errVersion = errors.New("written by another version")
	errDamaged = errors.New("cannot be read")
)

// Open opens or creates the file, takes its lock, cuts off a torn end and gives
// every record to replay. What replay was given before the damage in a disposable
// file counts.
func Open(c Config, replay func(Operation, []byte) error) (*Journal, error) {
	if c.Logger == nil {
		c.Logger = slog.Default()
	}
	for {
		j, err := open(c, replay)
		if err == nil {
			return j, nil
		}
		if j == nil {
			return nil, err
		}
		if errors.Is(err, errDamaged) && !c.Disposable {
			j.file.Close()
			return nil, err
		}
		aside, asideErr := setAside(c.Path)
		j.file.Close() // only now: its lock has kept others away
		if asideErr != nil {
			return nil, nserr.StateDir.Errorf("%w; nor can it be set aside: %w", err, asideErr)
		}
		c.Logger.Warn("a file of the state directory cannot be used, it is set aside and an empty one begun",
			"file", c.Path, "aside", aside, "lost", c.Lost, "error", err)
	}
}

// open opens the file as it is. If that fails for its contents the journal is
// returned too, locked and good for nothing else.
func open(c Config, replay func(Operation, []byte) error) (*Journal, error) {
	file, err := c.openLocked()
	if err != nil {
		return nil, err
	}
	j := &Journal{c: c, file: file}
	if err := j.load(replay); err != nil {
		if errors.Is(err, errVersion) || errors.Is(err, errDamaged) {
			return j, err
		}
		file.Close()
		return nil, err
	}
	os.Remove(j.nextPath()) // of a rewriting that a crash interrupted
	j.compactAt = CompactMin
	return j, nil
}

// setAside gives the file a name that no other has.
func setAside(path string) (aside string, err error) {
	for i := 1; ; i++ {
		aside = fmt.Sprintf("%s.aside%d", path, i)
		if _, err := os.Lstat(aside); errors.Is(err, fs.ErrNotExist) {
			return aside, os.Rename(path, aside)
		} else if err != nil {
			return "", err
		}
	}
}

// openLocked opens the file and locks it. A rewriting by the previous holder
// may put another file in its place between the two; then it tries again.
func (c *Config) openLocked() (*os.File, error) {
	for {
		f, err := os.OpenFile(c.Path, os.O_RDWR|os.O_CREATE, 0o600)
		if err != nil {
			return nil, nserr.StateDir.Errorf("%s: %w", c.Noun, err)
		}
		if err := c.lock(f); err != nil {
			f.Close()
			return nil, err
		}
		mine, err := f.Stat()
		if err == nil {
			var there fs.FileInfo
			if there, err = os.Stat(c.Path); err == nil && os.SameFile(mine, there) {
				return f, nil
			}
		}
		f.Close()
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, nserr.StateDir.Errorf("%s: %w", c.Noun, err)
		}
	}
}

func (c *Config) lock(f *os.File) error {
	err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if errors.Is(err, unix.EWOULDBLOCK) {
		return nserr.StateDir.Errorf("%s %s is in use by another process", c.Noun, f.Name()).
			WithFix("stop the other process, or choose another state directory")
	}
	if err != nil {
		return nserr.StateDir.Errorf("locking %s %s: %w", c.Noun, f.Name(), err)
	}
	return nil
}

// load replays the records and sets size.
func (j *Journal) load(replay func(Operation, []byte) error) error {
	info, err := j.file.Stat()
	if err != nil {
		return nserr.StateDir.Errorf("%s: %w", j.c.Noun, err)
	}
	end, err := scan(bufio.NewReaderSize(j.file, 1<<20), info.Size(), j.c.magic(), replay)
	if err != nil {
		return nserr.StateDir.Errorf("%s %s: %w", j.c.Noun, j.c.Path, err).
			WithFix("restore the file from a backup, or move it away to start with an empty one")
	}
	j.size = end
	if end < info.Size() {
		j.c.Logger.Warn("torn end of "+j.c.Noun+" is cut off", "file", j.c.Path, "offset", end, "bytes", info.Size()-end)
		j.torn = true
	}
	if end > 0 {
		return j.mend()
	}
	if err := j.writeAtEnd([]byte(j.c.magic())); err != nil {
		return err
	}
	if err := errors.Join(j.c.flush(j.file), j.c.flushDir()); err != nil {
		return nserr.StateDir.Errorf("%s %s: %w", j.c.Noun, j.c.Path, err)
	}
	return nil
}

// scan gives the records of a file of the given size to replay and returns the
// end of the last whole one. What a crash can leave behind it is not an error:
// a record cut short or one that fails its sum, and zeros up to the end. Anything
// else is damage.
func scan(r io.Reader, size int64, magic string, replay func(Operation, []byte) error) (end int64, err error) {
	head := make([]byte, len(magic))
	if n, err := io.ReadFull(r, head); err != nil || string(head) != magic {
		if string(head[:n]) == magic[:n] || onlyZeros(head[:n], r) {
			return 0, readError(err)
		}
		if kind := len(magic) - 1; n == len(magic) && string(head[:kind]) == magic[:kind] {
			return 0, fmt.Errorf("%w: %d, this is version %d", errVersion, head[kind], magic[kind])
		}
		return 0, fmt.Errorf("%w: a file of another kind", errDamaged)
	}
	header := make([]byte, headerSize)
	var body []byte
	for end = int64(len(magic)); ; {
		rest := size - end - headerSize
		if rest < 0 {
			return end, nil
		}
		if _, err := io.ReadFull(r, header); err != nil {
			return end, err
		}
		if crc32.Checksum(header[:8], castagnoli) != binary.LittleEndian.Uint32(header[8:]) {
			if onlyZeros(nil, r) {
				return end, nil
			}
			return end, fmt.Errorf("%w: damaged record at offset %d", errDamaged, end)
		}
		length := int64(binary.LittleEndian.Uint32(header))
		if length == 0 || length > maxBody {
			return end, fmt.Errorf("%w: record of %d bytes at offset %d", errDamaged, length, end)
		}
		if length > rest {
			return end, nil
		}
		body = append(body[:0], make([]byte, length)...)
		if _, err := io.ReadFull(r, body); err != nil {
			return end, err
		}
		if crc32.Checksum(body, castagnoli) != binary.LittleEndian.Uint32(header[4:]) {
			if onlyZeros(nil, r) {
				return end, nil
			}
			return end, fmt.Errorf("%w: damaged record at offset %d", errDamaged, end)
		}
		op := Operation(body[0])
		if op != Put && op != Delete {
			return end, fmt.Errorf("%w: record at offset %d has the unknown operation %d", errDamaged, end, op)
		}
		if err := replay(op, body[1:]); err != nil {
			return end, fmt.Errorf("%w: record at offset %d: %w", errDamaged, end, err)
		}
		end += headerSize + length
	}
}

// readError keeps real read errors; a short read is what the caller expects.
func readError(err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return nil
	}
	return err
}

// onlyZeros reports whether b and what r still has are zeros: a file system may
// lengthen a file before the data is there.
func onlyZeros(b []byte, r io.Reader) bool {
	buf := make([]byte, 64<<10)
	for {
		for _, c := range b {
			if c != 0 {
				return false
			}
		}
		n, err := r.Read(buf)
		if n == 0 && err != nil {
			return err == io.EOF
		}
		b = buf[:n]
	}
}

// encode appends a record to buf.
func encode(buf []byte, op Operation, payload []byte) []byte {
	start := len(buf)
	buf = append(buf, make([]byte, headerSize)...)
	buf = append(buf, byte(op))
	buf = append(buf, payload...)
	header, body := buf[start:start+headerSize], buf[start+headerSize:]
	binary.LittleEndian.PutUint32(header, uint32(len(body)))
	binary.LittleEndian.PutUint32(header[4:], crc32.Checksum(body, castagnoli))
	binary.LittleEndian.PutUint32(header[8:], crc32.Checksum(header[:8], castagnoli))
	return buf
}

// Append adds one record. On an error nothing of it remains.
func (j *Journal) Append(op Operation, payload []byte) error {
	if len(payload) >= maxBody {
		return nserr.TooLarge.Errorf("record of %d bytes", len(payload))
	}
	return j.writeAtEnd(encode(make([]byte, 0, headerSize+1+len(payload)), op, payload))
}

func (j *Journal) writeAtEnd(b []byte) error {
	if err := j.mend(); err != nil {
		return err
	}
	_, err := j.file.WriteAt(b, j.size)
	if err == nil && j.c.Sync {
		err = j.file.Sync()
	}
	if err != nil {
		j.torn = true
		_ = j.mend() // if it fails now, the next append tries again
		return nserr.StateDir.Errorf("nothing was changed, since %s %s cannot be written: %w", j.c.Noun, j.c.Path, err)
	}
	j.size += int64(len(b))
	return nil
}

// mend cuts off what a failed write left.
func (j *Journal) mend() error {
	if !j.torn {
		return nil
	}
	if err := j.file.Truncate(j.size); err != nil {
		return nserr.StateDir.Errorf("%s %s cannot be cut to its last record: %w", j.c.Noun, j.c.Path, err)
	}
	j.torn = false
	return nil
}

// Due reports whether most of the file is history.
func (j *Journal) Due() bool { return j.size >= j.compactAt }

func (j *Journal) nextPath() string { return j.c.Path + ".new" }

// Rewrite replaces the file by one with puts of the given payloads only. On an
// error the present file remains in use, and the next try is due when it has
// doubled.
func (j *Journal) Rewrite(payloads iter.Seq2[[]byte, error]) error {
	j.compactAt = 2 * j.size
	next, size, err := j.writeNext(payloads)
	if err == nil {
		err = os.Rename(j.nextPath(), j.c.Path)
	}
	if err != nil {
		if next != nil {
			next.Close()
		}
		os.Remove(j.nextPath())
		return err
	}
	j.file.Close() // its lock goes with it; next has been locked before it got the name
	j.file, j.size, j.torn = next, size, false
	j.compactAt = max(CompactMin, compactFactor*size)
	return j.c.flushDir()
}

// writeNext writes the new file beside the present one, locked and on disk.
func (j *Journal) writeNext(payloads iter.Seq2[[]byte, error]) (f *os.File, size int64, err error) {
	f, err = os.OpenFile(j.nextPath(), os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return nil, 0, err
	}
	if err := j.c.lock(f); err != nil {
		return f, 0, err
	}
	w := bufio.NewWriterSize(f, 1<<20)
	n, _ := w.WriteString(j.c.magic()) // a bufio.Writer remembers its first error for Flush
	size = int64(n)
	var record []byte
	for payload, err := range payloads {
		if err != nil {
			return f, 0, err
		}
		record = encode(record[:0], Put, payload)
		n, _ := w.Write(record)
		size += int64(n)
	}
	if err := w.Flush(); err != nil {
		return f, 0, err
	}
	return f, size, j.c.flush(f)
}

// flush waits for the disk, unless the file may be lost anyway.
func (c *Config) flush(f *os.File) error {
	if c.Disposable {
		return nil
	}
	return f.Sync()
}

// flushDir makes the names in the file's directory durable.
func (c *Config) flushDir() error {
	if c.Disposable {
		return nil
	}
	d, err := os.Open(filepath.Dir(c.Path))
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}

// Empty reports whether the file has no record, as one that took the place of another.
func (j *Journal) Empty() bool { return j.size <= int64(len(j.c.magic())) }

// Size is the length of the file in bytes.
func (j *Journal) Size() int64 { return j.size }

// Close waits for the disk and closes the file.
func (j *Journal) Close() error {
	err := j.c.flush(j.file)
	if e := j.file.Close(); err == nil {
		err = e
	}
	if err != nil {
		return nserr.StateDir.Errorf("closing %s %s: %w", j.c.Noun, j.c.Path, err)
	}
	return nil
}
