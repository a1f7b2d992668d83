// SPDX-License-Identifier: Apache-2.0

package memory

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

// The file begins with magic; records follow:
//
//	uint32  length of the body
//	uint32  CRC-32C of the body
//	uint32  CRC-32C of the eight bytes above
//	body    one byte operation, then its payload
//
// Numbers are little endian. The payload of a put is the object in protobuf,
// that of a delete is the name. The header has a sum of its own so that a
// damaged length is not mistaken for a torn end, and zeros are no header.
const (
	magic      = "NSMREG\x00\x01" // the last byte is the version
	headerSize = 12
	maxBody    = 16 << 20 // four times what a message may have
)

type operation byte

const (
	opPut    operation = 1
	opDelete operation = 2
)

// A file is rewritten when it has compactMin bytes and is compactFactor times
// as long as after the last time: then most of it is history, and the work is
// a constant share of all writing.
const (
	compactMin    = 1 << 20
	compactFactor = 4
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// journal is the append-only file of a store. Its methods are called by one
// goroutine at a time. After an error it remains usable: what was written in
// part is cut off or overwritten.
type journal struct {
	path string
	sync bool
	file *os.File // locked against other processes (flock) for as long as it is open

	size      int64 // end of the last whole record
	torn      bool  // there may be bytes after size
	compactAt int64 // size at which the next rewriting is due
}

// openJournal opens or creates the file, takes its lock, cuts off a torn end
// and gives every record to replay.
func openJournal(path string, sync bool, log *slog.Logger, replay func(operation, []byte) error) (*journal, error) {
	file, err := openLocked(path)
	if err != nil {
		return nil, err
	}
	j := &journal{path: path, sync: sync, file: file}
	if err := j.load(log, replay); err != nil {
		file.Close()
		return nil, err
	}
	os.Remove(j.nextPath()) // of a rewriting that a crash interrupted
	j.compactAt = max(compactMin, compactFactor*j.size)
	return j, nil
}

// openLocked opens the file and locks it. A rewriting by the previous holder
// may put another file in its place between the two; then it tries again.
func openLocked(path string) (*os.File, error) {
	for {
		f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
		if err != nil {
			return nil, nserr.StateDir.Errorf("registry file: %w", err)
		}
		if err := lock(f); err != nil {
			f.Close()
			return nil, err
		}
		mine, err := f.Stat()
		if err == nil {
			var there fs.FileInfo
			if there, err = os.Stat(path); err == nil && os.SameFile(mine, there) {
				return f, nil
			}
		}
		f.Close()
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, nserr.StateDir.Errorf("registry file: %w", err)
		}
	}
}

func lock(f *os.File) error {
	err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if errors.Is(err, unix.EWOULDBLOCK) {
		return nserr.StateDir.Errorf("registry file %s is in use by another process", f.Name()).
			WithFix("stop the other registry or choose another state directory")
	}
	if err != nil {
		return nserr.StateDir.Errorf("locking registry file %s: %w", f.Name(), err)
	}
	return nil
}

// load replays the records and sets size.
func (j *journal) load(log *slog.Logger, replay func(operation, []byte) error) error {
	info, err := j.file.Stat()
	if err != nil {
		return nserr.StateDir.Errorf("registry file: %w", err)
	}
	end, err := scan(bufio.NewReaderSize(j.file, 1<<20), info.Size(), replay)
	if err != nil {
		return nserr.StateDir.Errorf("registry file %s: %w", j.path, err).
			WithFix("restore the file from a backup, or move it away to start with an empty registry")
	}
	j.size = end
	if end < info.Size() {
		log.Warn("torn end of registry file is cut off", "file", j.path, "offset", end, "bytes", info.Size()-end)
		j.torn = true
	}
	if end > 0 {
		return j.mend()
	}
	if err := j.writeAtEnd([]byte(magic)); err != nil {
		return err
	}
	if err := errors.Join(j.file.Sync(), syncDir(filepath.Dir(j.path))); err != nil {
		return nserr.StateDir.Errorf("registry file %s: %w", j.path, err)
	}
	return nil
}

// scan gives the records of a file of the given size to replay and returns the
// end of the last whole one. What a crash can leave behind it is not an error:
// a record cut short, a last record that fails its sum, or zeros. Anything
// else is damage.
func scan(r io.Reader, size int64, replay func(operation, []byte) error) (end int64, err error) {
	head := make([]byte, len(magic))
	if n, err := io.ReadFull(r, head); err != nil || string(head) != magic {
		if string(head[:n]) == magic[:n] || onlyZeros(head[:n], r) {
			return 0, readError(err)
		}
		return 0, errors.New("not a registry file")
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
			if onlyZeros(header, r) {
				return end, nil
			}
			return end, fmt.Errorf("damaged record at offset %d", end)
		}
		length := int64(binary.LittleEndian.Uint32(header))
		if length == 0 || length > maxBody {
			return end, fmt.Errorf("record of %d bytes at offset %d", length, end)
		}
		if length > rest {
			return end, nil
		}
		body = append(body[:0], make([]byte, length)...)
		if _, err := io.ReadFull(r, body); err != nil {
			return end, err
		}
		if crc32.Checksum(body, castagnoli) != binary.LittleEndian.Uint32(header[4:]) {
			if length == rest {
				return end, nil
			}
			return end, fmt.Errorf("damaged record at offset %d", end)
		}
		op := operation(body[0])
		if op != opPut && op != opDelete {
			return end, fmt.Errorf("record at offset %d has the unknown operation %d", end, op)
		}
		if err := replay(op, body[1:]); err != nil {
			return end, fmt.Errorf("record at offset %d: %w", end, err)
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
func encode(buf []byte, op operation, payload []byte) []byte {
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

// append adds one record. On an error nothing of it remains.
func (j *journal) append(op operation, payload []byte) error {
	if len(payload) >= maxBody {
		return nserr.TooLarge.Errorf("record of %d bytes", len(payload))
	}
	return j.writeAtEnd(encode(make([]byte, 0, headerSize+1+len(payload)), op, payload))
}

func (j *journal) writeAtEnd(b []byte) error {
	if err := j.mend(); err != nil {
		return err
	}
	_, err := j.file.WriteAt(b, j.size)
	if err == nil && j.sync {
		err = j.file.Sync()
	}
	if err != nil {
		j.torn = true
		_ = j.mend() // if it fails now, the next append tries again
		return nserr.StateDir.Errorf("nothing was changed, since registry file %s cannot be written: %w", j.path, err)
	}
	j.size += int64(len(b))
	return nil
}

// mend cuts off what a failed write left.
func (j *journal) mend() error {
	if !j.torn {
		return nil
	}
	if err := j.file.Truncate(j.size); err != nil {
		return nserr.StateDir.Errorf("registry file %s cannot be cut to its last record: %w", j.path, err)
	}
	j.torn = false
	return nil
}

func (j *journal) due() bool { return j.size >= j.compactAt }

func (j *journal) nextPath() string { return j.path + ".new" }

// rewrite replaces the file by one with puts of the given payloads only. On an
// error the present file remains in use, and the next try is due when it has
// doubled.
func (j *journal) rewrite(payloads iter.Seq2[[]byte, error]) error {
	j.compactAt = 2 * j.size
	next, size, err := j.writeNext(payloads)
	if err == nil {
		err = os.Rename(j.nextPath(), j.path)
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
	j.compactAt = max(compactMin, compactFactor*size)
	return syncDir(filepath.Dir(j.path))
}

// writeNext writes the new file beside the present one, locked and on disk.
func (j *journal) writeNext(payloads iter.Seq2[[]byte, error]) (f *os.File, size int64, err error) {
	f, err = os.OpenFile(j.nextPath(), os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return nil, 0, err
	}
	if err := lock(f); err != nil {
		return f, 0, err
	}
	w := bufio.NewWriterSize(f, 1<<20)
	n, _ := w.WriteString(magic) // a bufio.Writer remembers its first error for Flush
	size = int64(n)
	var record []byte
	for payload, err := range payloads {
		if err != nil {
			return f, 0, err
		}
		record = encode(record[:0], opPut, payload)
		n, _ := w.Write(record)
		size += int64(n)
	}
	if err := w.Flush(); err != nil {
		return f, 0, err
	}
	return f, size, f.Sync()
}

// syncDir makes the names in dir durable.
func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}

func (j *journal) close() error {
	err := j.file.Sync()
	if e := j.file.Close(); err == nil {
		err = e
	}
	if err != nil {
		return nserr.StateDir.Errorf("closing registry file %s: %w", j.path, err)
	}
	return nil
}
