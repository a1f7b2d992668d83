// SPDX-License-Identifier: Apache-2.0

package nsmgr

import (
	"errors"
	"io/fs"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"sync/atomic"
	"time"

	"github.com/fsnotify/fsnotify"
	"sigs.k8s.io/yaml"

	"github.com/openvwire/nsm/sdk/nserr"
)

// ExcludedFile is a file of prefixes that endpoints must not take addresses
// from, followed as it changes (protocol.md §3.7). Its form is
//
//	prefixes:
//	  - 10.96.0.0/12
//	  - fd00:10:96::/112
//
// A file that does not exist excludes nothing. One that turns bad keeps what was
// good before.
type ExcludedFile struct {
	path    string
	log     *slog.Logger
	current atomic.Pointer[[]netip.Prefix]
	watcher *fsnotify.Watcher
	done    chan struct{}
}

// settle is how long the file is left alone after a change: editors write in
// several steps.
const settle = 50 * time.Millisecond

// OpenExcluded reads the file and follows it until Close. Its directory must
// exist. It fails with nserr.BadFlag when the file is there and makes no sense.
func OpenExcluded(path string, log *slog.Logger) (*ExcludedFile, error) {
	f := &ExcludedFile{path: path, log: log, done: make(chan struct{})}
	watcher, err := fsnotify.NewWatcher()
	if err != nil {
		return nil, nserr.StateDir.Errorf("cannot watch %s: %w", path, err)
	}
	// The directory, since a file is replaced by renaming.
	if err := watcher.Add(filepath.Dir(path)); err != nil {
		_ = watcher.Close()
		return nil, nserr.StateDir.Errorf("cannot watch %s: %w", filepath.Dir(path), err)
	}
	if err := f.read(); err != nil { // after the watch has begun, so that no change is missed
		_ = watcher.Close()
		return nil, err
	}
	f.watcher = watcher
	go f.follow()
	return f, nil
}

// Prefixes returns what the file says now.
func (f *ExcludedFile) Prefixes() []netip.Prefix { return *f.current.Load() }

// Close ends the watch.
func (f *ExcludedFile) Close() error {
	err := f.watcher.Close()
	<-f.done
	return err
}

func (f *ExcludedFile) follow() {
	defer close(f.done)
	var again <-chan time.Time
	for {
		select {
		case _, ok := <-f.watcher.Events:
			if !ok {
				return
			}
			again = time.After(settle)
		case _, ok := <-f.watcher.Errors:
			if !ok {
				return
			}
			again = time.After(settle) // events were lost: look for oneself
		case <-again:
			again = nil
			if err := f.read(); err != nil {
				f.log.Error("excluded prefixes not changed", "file", f.path, "error", err)
			} else {
				f.log.Info("excluded prefixes read", "file", f.path, "count", len(f.Prefixes()))
			}
		}
	}
}

func (f *ExcludedFile) read() error {
	text, err := os.ReadFile(f.path)
	if errors.Is(err, fs.ErrNotExist) {
		f.current.Store(&[]netip.Prefix{})
		return nil
	}
	if err != nil {
		return nserr.StateDir.Errorf("%w", err)
	}
	prefixes, err := ParseExcluded(text)
	if err != nil {
		return nserr.BadFlag.Errorf("%s: %w", f.path, err)
	}
	f.current.Store(&prefixes)
	return nil
}

// ParseExcluded reads the YAML form.
func ParseExcluded(text []byte) ([]netip.Prefix, error) {
	var file struct {
		Prefixes []netip.Prefix `json:"prefixes"`
	}
	if err := yaml.UnmarshalStrict(text, &file); err != nil {
		return nil, nserr.BadFlag.Errorf("not a list of prefixes: %w", err)
	}
	for i, p := range file.Prefixes {
		if !p.IsValid() { // what an empty string is read as
			return nil, nserr.BadFlag.Errorf("not a list of prefixes: entry %d is empty", i+1)
		}
	}
	return file.Prefixes, nil
}
