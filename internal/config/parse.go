// SPDX-License-Identifier: Apache-2.0

package config

import (
	"encoding"
	"errors"
	"fmt"
	"reflect"
	"strconv"
	"strings"
	"time"

	"github.com/openvwire/nsm/sdk/nserr"
)

var (
	textUnmarshaler = reflect.TypeFor[encoding.TextUnmarshaler]()
	duration        = reflect.TypeFor[time.Duration]()
	errUnsupported  = errors.New("type is not supported")
)

// parse reads text as a value of type t. The errors say what was expected, not
// where: the caller knows.
func parse(t reflect.Type, text string) (reflect.Value, error) {
	v := reflect.New(t).Elem()
	switch {
	case reflect.PointerTo(t).Implements(textUnmarshaler):
		if err := v.Addr().Interface().(encoding.TextUnmarshaler).UnmarshalText([]byte(text)); err != nil {
			return v, plain(err)
		}
		return v, nil
	case t == duration:
		d, err := time.ParseDuration(text)
		if err != nil {
			return v, errors.New("want a duration like 750ms or 1m30s")
		}
		v.SetInt(int64(d))
		return v, nil
	}
	switch t.Kind() {
	case reflect.String:
		v.SetString(text)
	case reflect.Bool:
		b, err := strconv.ParseBool(text)
		if err != nil {
			return v, errors.New("want true or false")
		}
		v.SetBool(b)
	case reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64:
		n, err := strconv.ParseInt(text, 10, t.Bits())
		if err != nil {
			return v, fmt.Errorf("want a whole number of %d bits", t.Bits())
		}
		v.SetInt(n)
	case reflect.Uint, reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64:
		n, err := strconv.ParseUint(text, 10, t.Bits())
		if err != nil {
			return v, fmt.Errorf("want a whole number from 0 to %d", ^uint64(0)>>(64-t.Bits()))
		}
		v.SetUint(n)
	case reflect.Float64:
		x, err := strconv.ParseFloat(text, 64)
		if err != nil {
			return v, errors.New("want a number")
		}
		v.SetFloat(x)
	case reflect.Slice:
		return parseList(t, items(text))
	case reflect.Map:
		return parseMap(t, items(text))
	default:
		return v, fmt.Errorf("%w: %v", errUnsupported, t)
	}
	return v, nil
}

// items splits a list in its text form.
func items(text string) (list []string) {
	for item := range strings.SplitSeq(text, ",") {
		if item = strings.TrimSpace(item); item != "" {
			list = append(list, item)
		}
	}
	return list
}

func parseList(t reflect.Type, items []string) (reflect.Value, error) {
	list := reflect.MakeSlice(t, 0, len(items))
	for _, item := range items {
		v, err := parse(t.Elem(), item)
		if err != nil {
			return list, fmt.Errorf("%q: %w", item, err)
		}
		list = reflect.Append(list, v)
	}
	return list, nil
}

// parseMap reads items of the form k:v (the reference's) or k=v; whichever
// separator comes first separates.
func parseMap(t reflect.Type, items []string) (reflect.Value, error) {
	m := reflect.MakeMap(t)
	if t.Key().Kind() != reflect.String {
		return m, fmt.Errorf("%w: %v", errUnsupported, t)
	}
	for _, item := range items {
		i := strings.IndexAny(item, ":=")
		if i <= 0 {
			return m, fmt.Errorf("%q: want key=value", item)
		}
		if err := putEntry(m, item[:i], item[i+1:]); err != nil {
			return m, err
		}
	}
	return m, nil
}

func putEntry(m reflect.Value, key, text string) error {
	v, err := parse(m.Type().Elem(), strings.TrimSpace(text))
	if err != nil {
		return fmt.Errorf("%q: %w", key, err)
	}
	m.SetMapIndex(reflect.ValueOf(strings.TrimSpace(key)).Convert(m.Type().Key()), v)
	return nil
}

// plain drops the code and the fix of an error, since it becomes part of
// another that has its own.
func plain(err error) error {
	if e := (*nserr.Error)(nil); errors.As(err, &e) {
		return errors.New(e.Msg)
	}
	return err
}

// typeName is the placeholder for a value of type t in --help.
func typeName(t reflect.Type) string {
	switch {
	case t == duration:
		return "duration"
	case reflect.PointerTo(t).Implements(textUnmarshaler):
		return strings.ToLower(t.Name())
	}
	switch t.Kind() {
	case reflect.Bool:
		return "bool"
	case reflect.String:
		return "string"
	case reflect.Slice:
		return typeName(t.Elem()) + ",..."
	case reflect.Map:
		return "key=value,..."
	}
	return "number"
}
