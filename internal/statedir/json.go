// SPDX-License-Identifier: Apache-2.0

package statedir

import (
	"encoding/json"
	"errors"
	"maps"
	"reflect"
	"strings"

	"github.com/openvwire/nsm/sdk/nserr"
)

// Rest is what a JSON object has beyond the fields of a struct: what a later
// version of this program has put there. Whoever writes the object again gives
// it back, so that going back to an earlier version and forth again loses nothing.
type Rest map[string]json.RawMessage

// format is the version of JSON files that this program writes and reads for
// sure. A file says another one with the member "version".
const format = 1

// ReadJSON reads a file into the struct that v points to. A later version of the
// program has written it when it says so; that alone is no reason to refuse it.
// If it cannot be read damaged is how to repair a file of this version.
func (d *Dir) ReadJSON(name string, v any, damaged string) (Rest, error) {
	data, err := d.Read(name)
	if err != nil {
		return nil, err
	}
	rest, err := Split(data, v)
	if err == nil {
		return rest, nil
	}
	if later := d.Later(name, rest); later != nil {
		return nil, later
	}
	return nil, nserr.StateDir.Errorf("%s is damaged: %w", d.Path(name), err).WithFix("%s", damaged)
}

// Later returns the error for a file without what must be there, if the rest of
// it says that it is of a later version; nil if it does not.
func (d *Dir) Later(name string, rest Rest) error {
	var version int
	if json.Unmarshal(rest["version"], &version) != nil || version <= format {
		return nil
	}
	return nserr.StateDir.Errorf("%s was written by a later version of nsm (format %d) in a way that this one does not understand", d.Path(name), version).
		WithFix("run that version again; the file is as it was")
}

// WriteJSON replaces a file by the struct v and the rest of what was there.
func (d *Dir) WriteJSON(name string, v any, rest Rest) error {
	data, err := Join(v, rest)
	if err != nil {
		return nserr.Internal.Errorf("encode %s: %w", name, err)
	}
	return d.Write(name, data)
}

// Split decodes a JSON object into the struct that v points to and returns the
// rest of it, that also in case of an error if it is an object at all.
func Split(data []byte, v any) (rest Rest, err error) {
	if err := json.Unmarshal(data, &rest); err != nil {
		return nil, err
	}
	if rest == nil {
		return nil, errors.New("it is null")
	}
	known := reflect.TypeOf(v).Elem()
	for i := range known.NumField() {
		tag, _, _ := strings.Cut(known.Field(i).Tag.Get("json"), ",")
		delete(rest, tag)
	}
	return rest, json.Unmarshal(data, v)
}

// Join is the inverse of Split.
func Join(v any, rest Rest) ([]byte, error) {
	data, err := json.Marshal(v)
	if err != nil {
		return nil, err
	}
	var all map[string]json.RawMessage
	if err := json.Unmarshal(data, &all); err != nil {
		return nil, err
	}
	maps.Copy(all, rest)
	return json.MarshalIndent(all, "", "  ")
}
